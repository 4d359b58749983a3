"""The ground floor: nouns, events, the pure fold and the logs that hold them; it imports no other room."""
