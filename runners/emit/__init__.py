"""What an agent reports about its own run: rewards, messages, objects, operations."""
