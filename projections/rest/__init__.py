"""The HTTP door of the store: one table of routes, read by the server and by the client."""
