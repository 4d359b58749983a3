"""The demonstration: a small language model, two runners, and the best of nine prompts."""
