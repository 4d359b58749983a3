"""The topics `facts` and `tasks`: what subscribers read, derived from the control log."""
