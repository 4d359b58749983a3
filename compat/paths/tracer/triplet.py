"""What agentlightning.tracer.triplet was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.adapters.triplets import TripletExporter as TripletExporter
