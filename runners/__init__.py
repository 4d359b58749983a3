"""Agents and the processes that run them: they claim rollouts, trace model calls and emit rewards."""
