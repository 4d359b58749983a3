"""Everything of generation 0.1, and every import path of older releases."""
