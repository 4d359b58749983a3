"""The spans topic: how spans are numbered, made unique, stored and read."""
