"""
Ten times what the machine takes: what is refused, how fast, with what hint, and what becomes of the rest.

Capacity is measured first, by callers that wait for their answers. Then arrivals come by schedule from two processes
on the same cores; where those are too weak for ten times as much, `sent` says how much reached the server. A polite
caller asks twenty times a second before, during and after. At last each accepted one is looked for in the database.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self
from uuid import uuid4

from bench.rounds import shown, words
from bench.running import BARE, ROOT, Running, load, module
from bench.scene import WEBHOOK_SECRET, Scene

TIMES = 10
GENERATORS = 2
BEFORE = 3.0  # seconds in which the polite caller is alone
AFTER = 8.0
ENVIRONMENT = {**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}


@dataclass(frozen=True)
class Target:
    name: str
    process: str
    #: What the load generators are told: how to find it, and with what.
    kind: str
    listener: str
    counted: int
    concurrency: int
    #: As many requests may be without an answer, of each generator.
    unanswered: int
    stored: str


TARGETS = (
    Target("webhooks", "gateway", "webhooks", "http", 6000, 64, 1500, "SELECT event_id FROM inbox"),
    Target("SendSms", "services.sms", "sms", "grpc", 3000, 64, 2000, "SELECT idempotency_key FROM message"),
    Target("CreatePayment", "services.payments", "payments", "grpc", 1500, 64, 2000,
           "SELECT idempotency_key FROM payment WHERE intent_id <> ''"),
)  # fmt: skip


@dataclass
class Memory:
    """Resident MiB of a process, looked at four times a second."""

    pid: int
    seen: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self.seen.append(resident_mib(self.pid))


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


class Overload:
    title = "Ten times too much"

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.seen: dict[str, dict[str, float]] = {}

    def run(self, rounds: int | None) -> None:
        del rounds  # one: what counts is how it ends
        for target in TARGETS:
            self.seen[target.name] = self._overloaded(target)
            print(json.dumps({target.name: self.seen[target.name]}), flush=True)

    def _overloaded(self, target: Target) -> dict[str, float]:
        database = self._scene.folder / f"{uuid4().hex}.db"
        with self._started(target, f"sqlite:///{database}") as process:
            address = process.addresses[target.listener]
            where = address.rpartition(":")[2] if target.kind == "webhooks" else address
            capacity = capacity_of(target, where)
            with Memory(process.pid) as memory:
                probe = started("probe", target.kind, where, *secret(target))
                time.sleep(BEFORE)
                files = [self._scene.folder / f"{uuid4().hex}.accepted" for _ in range(GENERATORS)]
                tallies = flooded(target, where, capacity * TIMES, self._scene.seconds, files)
                time.sleep(AFTER)
                polite: list[list[float]] = json.loads(probe.communicate()[0])
        kept = {key for (key,) in sqlite3.connect(database).execute(target.stored)}
        accepted = [key for file in files for key in file.read_text().split()]
        return {
            "capacity_per_s": capacity,
            **rates(tallies, self._scene.seconds),
            **latencies(tallies),
            **recovery(polite, max(tally["ended_at"] for tally in tallies), self._scene.seconds),
            "MiB_before": memory.seen[0],
            "MiB_peak": max(memory.seen),
            "MiB_after": memory.seen[-1],
            "accepted": len(accepted),
            "accepted_but_not_kept": len(set(accepted) - kept),
        }

    def _started(self, target: Target, database: str) -> AbstractContextManager[Running]:
        settings = {"STRIPE_API_BASE": self._scene.providers_url} if target.kind == "payments" else {}
        return self._scene.ours(target.process, database, **settings)

    def table(self) -> str:
        figures = list(dict.fromkeys(figure for row in self.seen.values() for figure in row))
        lines = [f"### {self.title}, for {self._scene.seconds:g} s", ""]
        lines += ["| | " + " | ".join(self.seen) + " |", "|---|" + "---:|" * len(self.seen)]
        for figure in figures:
            cells = [shown(row.get(figure)) for row in self.seen.values()]
            lines.append(f"| {words(figure)} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        return {"title": self.title, "seconds": self._scene.seconds, "seen": self.seen}


def secret(target: Target) -> list[str]:
    return [WEBHOOK_SECRET] if target.kind == "webhooks" else []


def capacity_of(target: Target, where: str) -> float:
    """Answers a second to callers that wait for them; the second of two runs."""
    given: Sequence[object] = (where, target.counted, target.concurrency, *secret(target))
    seen = [
        load("webhooks", *given) if target.kind == "webhooks" else load("rpcs", target.kind, *given) for _ in range(2)
    ]
    return seen[-1]["per_second"]


def started(name: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = module(f"bench.loads.{name}", *map(str, arguments))
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def flooded(target: Target, where: str, rate: float, seconds: float, files: Sequence[Path]) -> list[dict[str, Any]]:
    each = (rate / len(files), seconds, target.unanswered, *secret(target))
    if target.kind == "webhooks":
        generators = [started("overload_webhooks", where, *each, file) for file in files]
    else:
        generators = [started("overload_rpcs", target.kind, where, *each, file) for file in files]
    return [json.loads(generator.communicate(timeout=seconds + 60)[0].splitlines()[-1]) for generator in generators]


def rates(tallies: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
    codes: Counter[str] = Counter()
    for tally in tallies:
        codes.update(tally["codes"])
    offered, unsent = (sum(tally[name] for tally in tallies) for name in ("offered", "unsent"))
    refused = sum(count for code, count in codes.items() if code not in {"200", "OK"})
    return {
        "offered_per_s": offered / seconds,
        "sent_per_s": (offered - unsent) / seconds,
        **{f"{code.replace('_', ' ')}_per_s": count / seconds for code, count in sorted(codes.items())},
        "refused_with_hint_in_percent": 100 * sum(tally["hinted"] for tally in tallies) / max(1, refused),
    }


def latencies(tallies: Sequence[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in ("accepted", "shed"):
        tenths: Counter[int] = Counter()
        for tally in tallies:
            tenths.update({int(value): count for value, count in tally[kind].items()})
        ordered = sorted(tenths.elements())
        for percent in (50, 99):
            found[f"{kind}_p{percent}_ms"] = ordered[len(ordered) * percent // 100] / 10 if ordered else 0.0
    return found


def recovery(polite: Sequence[Sequence[float]], ended: float, seconds: float) -> dict[str, float]:
    """Back means: from then on ten in a row are taken, in at most twice the time that it took before."""
    before = [took for when, took, _ in polite if when < polite[0][0] + BEFORE - 1]
    during = [took for when, took, taken in polite if ended - seconds < when < ended and taken]
    later = [(when, took, taken) for when, took, taken in polite if when >= ended]
    back = next(
        (
            later[start][0] - ended
            for start in range(len(later) - 10)
            if all(taken for _, _, taken in later[start : start + 10])
            and median(took for _, took, _ in later[start : start + 10]) <= 2 * median(before)
        ),
        float("inf"),
    )
    return {
        "polite_p50_ms_before": median(before),
        "polite_p50_ms_meanwhile": median(during) if during else float("inf"),
        "seconds_until_as_before": back,
    }


def part(scene: Scene) -> Overload:
    return Overload(scene)
