"""The client of a store."""
