"""What users hold: rollouts, resources, spans, statuses, queries, and the interface of a store."""
