"""The queue of runners: claims, waits for outcomes, and the consumer group that is told of new tasks."""
