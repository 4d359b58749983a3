"""The events of the control log, and how they and users' values become bytes."""
