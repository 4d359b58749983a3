"""A runner of the demo: the agent of this package in a process that ends with the demo.

`python -m agentlightning.cli.demo.worker --store URL --worker-id N [--chat]` does what
`agl runner agentlightning.cli.demo.agent:agent --store URL` does, and holds a lifeline besides.
"""

from __future__ import annotations

import argparse
import asyncio

from ...core.logging_setup import setup_logging
from ...rest.open_store import open_store
from ...runners.agent.litagent import LitAgent
from ...runners.tracing.otel import OtelTracer
from ...runners.worker.runner import LitAgentRunner
from .agent import agent, chat_agent
from .lifeline import hold


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--worker-id", type=int, required=True)
    parser.add_argument("--chat", action="store_true")
    args = parser.parse_args(argv)
    hold()
    setup_logging()
    asyncio.run(_work(args.store, args.worker_id, chat_agent if args.chat else agent))
    return 0


async def _work(url: str, worker_id: int, work: LitAgent[dict[str, str]]) -> None:
    runner = LitAgentRunner[dict[str, str]](tracer=OtelTracer())
    with runner.run_context(agent=work, store=open_store(url), worker_id=worker_id):
        await runner.iter()


if __name__ == "__main__":
    raise SystemExit(main())
