"""The log as one SQLite file: durable, one writer, many readers."""
