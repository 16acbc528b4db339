"""Doing what the schedule says: kills, freezes, faults of the providers, cut connections, a full disk."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

import aiohttp

from chaos.database import signal_all
from chaos.operations import Journal
from chaos.processes import born
from chaos.schedule import PROVIDERS, Step
from chaos.system import ROOT, System, plain

PATHS = {"stripe": "POST /v1/payment_intents", "sendgrid": "POST /v3/mail/send", "twilio": "POST /2010-04-01"}
#: Seconds in which the moment of an aimed kill has to come.
AIMING = 5.0
#: Seconds of silence after accepting, in which the kill strikes.
SILENCE = 3.0


class Trouble:
    def __init__(self, system: System, journal: Journal, http: aiohttp.ClientSession, seed: int) -> None:
        self._system, self._journal, self._http = system, journal, http
        self._dice = random.Random(seed)
        self._frozen: set[tuple[int, str]] = set()  # with their birth: a pid may be another's by then
        self.counts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        #: Seconds from a kill until the process was ready again, the worst by process.
        self.recovery: dict[str, float] = {}
        self._recovering: set[str] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._aiming = asyncio.Lock()

    async def run(self, steps: Sequence[Step]) -> None:
        """All steps at their time; afterwards nothing is frozen and no disk full."""
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
                    group.create_task(self._take(step))
        finally:
            self._system.disk.release()
            self._thaw(list(self._frozen))

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    @property
    def down(self) -> list[str]:
        return sorted(self._recovering)

    async def _take(self, step: Step) -> None:
        with suppress(aiohttp.ClientError, OSError):  # the target of a fault may be down itself
            await getattr(self, f"_{step.kind}")(step)

    async def _kill(self, step: Step) -> None:
        self.kill(self._dice.choice(self._system.replicas(step.target)), "at random")

    def kill(self, name: str, why: str) -> None:
        pids = self._system.pids(name)
        if name == "postgres":
            pids = pids[:1]
        if signal_all(pids, signal.SIGKILL):
            self._killed(name, why)

    def _killed(self, name: str, why: str) -> None:
        self.kills[name.partition("-")[0]] += 1
        self.counts[f"kill, {why}"] += 1
        self._journal.event("kill", name, why=why)
        if name in self._system.names and name not in self._recovering:
            watch = asyncio.create_task(self._measure(name))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _measure(self, name: str) -> None:
        self._recovering.add(name)
        began = time.monotonic()
        try:
            await asyncio.sleep(0.2)
            while not await self._system.ready(self._http, name):  # noqa: ASYNC110 - another process, no event of ours
                await asyncio.sleep(0.1)
        finally:
            self._recovering.discard(name)
        process = name.partition("-")[0]
        self.recovery[process] = max(self.recovery.get(process, 0.0), round(time.monotonic() - began, 1))

    async def _kill_after_accepting(self, step: Step) -> None:
        """Let the provider take a request and say nothing; then nobody but it knows, if the service dies."""
        fault = {"provider": step.target, "path": PATHS[step.target], "kind": "hang_after_accepting"}
        async with self._http.post(
            f"{self._system.sandbox}/_sandbox/faults", json={**fault, "seconds": SILENCE}
        ) as answer:
            number = (await answer.json())["numbers"][0]
        until = time.monotonic() + AIMING
        while time.monotonic() < until:
            async with self._http.get(f"{self._system.sandbox}/_sandbox/faults") as answer:
                found = (await answer.json())["faults"]
            if any(fault["number"] == number and fault["hits"] for fault in found):
                for name in self._system.replicas(PROVIDERS[step.target]):
                    self.kill(name, "after the provider accepted")
                return
            await asyncio.sleep(0.03)

    async def _kill_after_answer(self, _step: Step) -> None:
        front, struck = self._system.fronts["webhooks"], asyncio.Event()

        def strike(name: str, data: bytes) -> None:
            if not struck.is_set() and data.startswith(b"HTTP/1.1 200"):
                struck.set()
                self.kill(name, "after a webhook's 200")

        front.seen = strike
        with suppress(TimeoutError):
            await asyncio.wait_for(struck.wait(), AIMING)
        front.seen = None

    async def _kill_at_cursor(self, _step: Step) -> None:
        """
        Kill at the moment a stored cursor is seen to move: what belongs to it has to be there as well.

        One at a time, because each aim has priority, and several would leave the system no time to progress.
        """
        if self._aiming.locked():
            return
        names = self._system.replicas("gateway")
        async with self._aiming:
            pids = [str(pid) for name in names for pid in self._system.pids(name)]
            arguments = ["-m", "chaos.aim", self._system.stores.url("gateway"), str(AIMING), *pids]
            aiming = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, env=plain())
            struck = await aiming.wait() == 0
        if struck:
            for name in names:
                self._killed(name, "at the cursor's move")

    async def _freeze(self, step: Step) -> None:
        name = self._dice.choice(self._system.replicas(step.target))
        pids = self._system.pids(name)
        frozen = [(pid, born(pid)) for pid in pids]
        began = time.time()
        if not signal_all(pids, signal.SIGSTOP):
            return
        self._frozen.update(frozen)
        self.counts["freeze, past a lease" if step.seconds > 20 else "freeze"] += 1
        try:
            await asyncio.sleep(step.seconds)
        finally:
            self._thaw(frozen)
            self._journal.event("freeze", name, began=began, ended=time.time())

    def _thaw(self, frozen: Sequence[tuple[int, str]]) -> None:
        """Whose parent was killed meanwhile, too: a frozen orphan of PostgreSQL's keeps the next from starting."""
        signal_all([pid for pid, birth in frozen if birth and born(pid) == birth], signal.SIGCONT)
        self._frozen.difference_update(frozen)

    async def _fault(self, step: Step) -> None:
        await self.fault(step.fault or {})

    async def fault(self, fault: Mapping[str, object]) -> None:
        async with self._http.post(f"{self._system.sandbox}/_sandbox/faults", json=dict(fault)) as answer:
            if answer.status == 201:
                self.counts[f"fault, {fault['kind']}"] += 1
                self._journal.event("fault", str(fault["provider"]), kind=fault["kind"])

    async def _cut(self, step: Step) -> None:
        self.counts["connections reset"] += self._system.fronts[step.target].cut()
        self._journal.event("cut", step.target)

    async def _fill(self, step: Step) -> None:
        disk = self._system.disk
        if not disk.fillable:
            self.counts["disk full, skipped: mounting a small one needs root"] += 1
            return
        self._journal.event("fill", "disk", seconds=step.seconds)
        self.counts["disk full"] += 1
        until = time.monotonic() + step.seconds
        try:
            while time.monotonic() < until:
                await asyncio.to_thread(disk.fill)  # again: what is checkpointed meanwhile makes room
                await asyncio.sleep(0.1)
        finally:
            disk.release()
