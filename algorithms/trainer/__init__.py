"""The trainer: an algorithm, an agent and a store, run to the end."""
