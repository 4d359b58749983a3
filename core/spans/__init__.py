"""Pure functions that read spans: attributes, rewards, messages, model calls, links."""
