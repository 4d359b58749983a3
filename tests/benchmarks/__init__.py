"""Benchmarks: what `make bench` prints. Nothing here is asserted; ratios of one run are what counts."""
