"""Recorded runs: recorder, replay, and the report of what a run reached."""
