"""`python -m agentlightning` is the command `agl`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
