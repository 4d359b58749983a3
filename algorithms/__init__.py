"""Algorithms read spans and rewards, and publish better resources."""
