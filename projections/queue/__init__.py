"""The queue of runners: claims, waits for outcomes, and the consumer group that is notified of new tasks."""
