"""The runner: it claims rollouts, runs the agent on each, and reports the attempt's outcome."""
