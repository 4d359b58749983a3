"""The import path agentlightning.tracer.triplet of the older releases."""

from agentlightning.algorithms.adapters.triplets import TripletExporter as TripletExporter
