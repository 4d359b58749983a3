"""Algorithms that search for better resources, each a file."""
