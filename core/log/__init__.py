"""The interface of a log, its topics, and its implementations: local (memory), SQLite and Kafka."""
