"""The store's public methods, computed from a replica."""
