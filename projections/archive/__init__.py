"""The index of finished rollouts, kept beside the log and rebuilt from it."""
