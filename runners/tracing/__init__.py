"""Tracers, and the patches that record calls of model clients as spans."""
