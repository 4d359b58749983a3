"""Execution strategies: where the algorithm and the runners of a fit run."""
