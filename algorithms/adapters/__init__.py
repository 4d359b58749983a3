"""Adapters: what a rollout recorded, in the form that an algorithm learns from."""
