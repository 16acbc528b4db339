"""How late jobs begin that were scheduled ahead: 100,000 of them, due evenly over two and a half minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.rounds import Contestant, Measure, Part
from bench.running import module, seen_by
from bench.scene import Scene

COUNT, SECONDS = 100_000, 150


def part(scene: Scene) -> Part:
    def contestant(name: str, database: Callable[[], str]) -> Contestant:
        def measure() -> dict[str, float]:
            return seen_by(module("bench.peers.schedule", database(), str(COUNT), str(SECONDS)), wait=SECONDS * 5)

        @contextmanager
        def started() -> Iterator[Measure]:
            yield measure

        return Contestant(name, started)

    contestants = [contestant("SQLite", scene.sqlite), contestant("PostgreSQL", scene.postgres.database)]
    return Part(f"Lateness of {COUNT:,} scheduled jobs", contestants, rounds=1, warm=False)
