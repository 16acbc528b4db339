"""Jobs that do nothing, all due at once, on PostgreSQL: an empty database for each round, its CPU included."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench import install
from bench.rounds import Contestant, Measure, Part, Ratio
from bench.running import seen_by
from bench.scene import Scene

COUNT = 4000


def part(scene: Scene) -> Part:
    def contestant(name: str, python: str) -> Contestant:
        def measure() -> dict[str, float]:
            module = [python, "-m", "bench.peers.queues", name]
            return seen_by([*module, scene.postgres.database(), str(COUNT), str(scene.postmaster)])

        @contextmanager
        def started() -> Iterator[Measure]:
            yield measure

        return Contestant(name, started)

    queues, oban = install.queues(), install.oban()
    peers = [contestant("procrastinate", queues), contestant("pgqueuer", queues)]
    peers += [contestant("oban", oban)] if oban else []
    ratios = [Ratio("ours", peer.name, 1.0) for peer in peers]
    return Part("Jobs on PostgreSQL", [contestant("ours", sys.executable), *peers], ratios, rounds=3)
