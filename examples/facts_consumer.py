"""Prints how every rollout ended, with a plain Kafka consumer and nothing of this package: facts are JSON in a topic.

    python examples/facts_consumer.py localhost:9092 dev
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer


async def main(servers: str, prefix: str) -> None:
    seen = set()  # facts are published at least once; their ids say which ones were read already
    facts = AIOKafkaConsumer(f"{prefix}.facts", bootstrap_servers=servers, group_id="printer", auto_offset_reset="earliest")
    async with facts:
        async for record in facts:
            fact = json.loads(record.value or "{}")
            if fact.get("type") == "rollout.completed" and fact["id"] not in seen:
                seen.add(fact["id"])
                print(fact["rollout_id"], fact["data"]["status"], flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
