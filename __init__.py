"""Agent Lightning on an event log: run agents, record what they did, and let algorithms improve them."""

__version__ = "0.1.0"
