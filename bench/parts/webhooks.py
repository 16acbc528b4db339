"""
Verified webhooks of Stripe, kept before they are answered.

The gateway's payments service is away, so that what is counted is the taking and not the passing on. Where PostgreSQL
keeps them, its processes count too, on both sides.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench.install import express
from bench.rounds import Contestant, Measure, Part, Ratio
from bench.running import Running, cpu_seconds, load, module, running
from bench.scene import CONCURRENCY, WEBHOOK_SECRET, Scene

COUNT = 4000


def part(scene: Scene) -> Part:
    secret = {"STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET}

    def contestant(name: str, start: Callable[[], AbstractContextManager[Running]], *, postgres: bool) -> Contestant:
        @contextmanager
        def started() -> Iterator[Measure]:
            with start() as process:
                pids = [process.pid, scene.postmaster] if postgres else [process.pid]
                port = process.addresses["http"].rpartition(":")[2]

                def measure() -> dict[str, float]:
                    before = cpu_seconds(*pids)
                    seen = load("webhooks", port, COUNT, CONCURRENCY, WEBHOOK_SECRET)
                    return {"cpu_ms_per_1000": (cpu_seconds(*pids) - before) * 1e6 / COUNT, **seen}

                yield measure

        return Contestant(name, started)

    def node(**settings: str) -> AbstractContextManager[Running]:
        environment = {"NODE_ENV": "production", **secret, **settings}
        return running(["node", str(express() / "server.mjs")], scene.log("express"), **environment)

    def floor() -> AbstractContextManager[Running]:
        database = f"{scene.folder}/floor.db"
        return running(module("bench.peers.floor"), scene.log("floor"), PEER_DATABASE=database, **secret)

    return Part(
        "Verified webhooks",
        [
            contestant("gateway, SQLite", lambda: scene.ours("gateway"), postgres=False),
            contestant("bare ASGI, HMAC, grouped commit", floor, postgres=False),
            contestant("Express + stripe-node, storing nothing", node, postgres=False),
            contestant("gateway, PostgreSQL", lambda: scene.ours("gateway", scene.postgres.database()), postgres=True),
            contestant(
                "Express + stripe-node, PostgreSQL",
                lambda: node(DATABASE_URL=scene.postgres.database()),
                postgres=True,
            ),
        ],
        [
            Ratio("gateway, SQLite", "Express + stripe-node, storing nothing", 0.6),
            Ratio("gateway, SQLite", "bare ASGI, HMAC, grouped commit", 1.5),
            Ratio("gateway, PostgreSQL", "Express + stripe-node, PostgreSQL", 0.5),
        ],
    )
