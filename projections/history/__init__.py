"""Reading the past of a log: runs, rollouts, states at a position, and whether the log is whole."""
