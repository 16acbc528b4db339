"""Take the primary away, again and again, and watch how long nothing can be stored."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from failover.cluster import Cluster, Node
from failover.journal import KINDS, Journal
from failover.system import System

#: What happens to the primary, and how often of ten times. Its machine dies, disk kept; PostgreSQL dies and Patroni
#: sees it; everything stops moving but keeps its connections, until its watchdog resets it. There is no watchdog here,
#: so we are it: a frozen Patroni that wakes up after its lock has passed to another takes it back, and what the other
#: has acknowledged meanwhile is lost.
WAYS = {"machine": 6, "postgres": 2, "freeze": 2}
#: Seconds in which all kinds of calls have to go on, and in which a cluster is whole again.
WITHIN, WHOLE_WITHIN = 60.0, 120.0


@dataclass
class Kill:
    way: str
    node: str
    #: Seconds after the start of the run.
    at: float
    #: Seconds until another node was the primary.
    promoted: float | None = None
    #: Seconds until calls of each kind were acknowledged again; None: not within the time they have.
    went_on: dict[str, float | None] = field(default_factory=dict)

    @property
    def worst(self) -> float | None:
        times = [seconds for seconds in self.went_on.values() if seconds is not None]
        return max(times) if len(times) == len(KINDS) else None


class Killing:
    def __init__(self, cluster: Cluster, system: System, journal: Journal, seed: int) -> None:
        self._cluster = cluster
        self._system = system
        self._journal = journal
        self._dice = random.Random(seed)
        self._started = time.monotonic()
        self.kills: list[Kill] = []

    async def run(self, seconds: float, tell: Callable[[Kill], None]) -> None:
        until = self._started + seconds
        while True:
            primary = await self._cluster.whole(WHOLE_WITHIN)
            await asyncio.sleep(self._dice.uniform(1.0, 3.0))
            if time.monotonic() > until:
                return
            (way,) = self._dice.choices(list(WAYS), list(WAYS.values()))
            if primary is self._cluster.nodes[0] and not any(kill.node == primary.name for kill in self.kills):
                way = "freeze"  # the hardest: clients that try one host after another wait for this one first
            kill = Kill(way, primary.name, time.monotonic() - self._started)
            self.kills.append(kill)
            await self._strike(kill, primary)
            self._system.restart_ended()
            tell(kill)

    async def _strike(self, kill: Kill, primary: Node) -> None:
        """Strike, wait until calls go on without the node, then bring it back."""
        strike = {"machine": primary.kill, "postgres": primary.kill_postgres, "freeze": primary.freeze}
        began = time.monotonic()
        strike[kill.way]()
        try:
            while time.monotonic() - began < WITHIN:
                if kill.promoted is None:
                    leader = await self._cluster.leader()
                    if leader is not None and leader is not primary:
                        kill.promoted = time.monotonic() - began
                kill.went_on = {kind: self._journal.went_on(kind, began) for kind in KINDS}
                if kill.worst is not None and kill.promoted is not None:
                    break
                await asyncio.sleep(0.1)
        finally:
            if kill.way == "freeze":
                primary.kill()
            if kill.way != "postgres":
                primary.start()
