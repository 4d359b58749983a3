"""The command line: every sub-command of `agl`."""
