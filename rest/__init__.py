"""The HTTP API of a store: its description, its server and its client."""
