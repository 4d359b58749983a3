"""The demonstration: two runners, a small language model, and a log that proves what happened."""
