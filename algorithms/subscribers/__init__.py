"""Subscribers: Python functions that are given the facts of a store."""
