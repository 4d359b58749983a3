"""Exit code 0 if the store on this machine answers: for the health checks of containers, which cannot send its token.

    python health.py [PORT]         # 4747 unless given; the token is read from AGL_TOKEN
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

DEADLINE_SECONDS = 3.0


def healthy(port: int, token: str | None) -> bool:
    """Whether `/health` answers 200 in time. What is wrong otherwise goes to standard error, in one line."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/health", headers=headers)
    # Never through a proxy of the environment: the store is in this container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=DEADLINE_SECONDS) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError) as error:
        print(f"no healthy store on port {port}: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(int(sys.argv[1]) if len(sys.argv) > 1 else 4747, os.environ.get("AGL_TOKEN")) else 1)
