"""The store: everything that is computed from the log, from the queue to spans, and its door over HTTP."""
