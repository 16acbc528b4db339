"""A hypothesis state machine compares the queue on a real database with a model in Python."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, rows
from services.chassis.queue import jobs, operations
from services.chassis.queue.jobs import Complete, Job, LeaseLost, Queue, Snooze
from tests.integration.test_queue import nothing, remember
from tests.postgres_cluster import Cluster

IDS = st.sampled_from([f"job{n}" for n in range(5)])
#: Seconds of one tick of the model's clock. The seconds that a test takes are too few to matter.
TICK = 100
TICKS = st.integers(0, 6)
QUEUE = Queue("post", nothing, remember, deadline=10 * TICK / 2)
LEASE = 10 * TICK


@dataclass
class Modelled:
    priority: int
    due: int
    expires_at: int
    state: str = "queued"
    claims: int = 0
    attempted: int = 0
    failures: int = 0
    crashes: int = 0


class QueueBesideModel(RuleBasedStateMachine):
    """Each rule does the same to both. After each, every job must be equal in both."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.model: dict[str, Modelled] = {}
        self.held: list[Job] = []
        self.stack = AsyncExitStack()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.runner.run(self.open())

    async def open(self) -> None:
        url = self.url or f"sqlite:///{self.folder.name}/model.db"
        self.db: Database = await self.stack.enter_async_context(connect(url))
        for table in ("job", "rate_limit"):
            await self.db.run(rows, f"DELETE FROM {table}")
        await self.db.run(rows, "CREATE TABLE IF NOT EXISTS given_up (id TEXT, reason TEXT NOT NULL)")

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def do(self, transaction: Any, *args: Any, **kwargs: Any) -> Any:
        return self.runner.run(self.db.run(transaction, *args, **kwargs))

    @rule(id=IDS, priority=st.sampled_from(jobs.PRIORITIES), wait=TICKS)
    def add(self, id: str, priority: int, wait: int) -> None:
        row = self.do(rows, "SELECT now_ms() AS now")[0]
        due, expires_at = row["now"] + wait * TICK * 1000, row["now"] + (wait + 20) * TICK * 1000
        added = self.do(jobs.add, "post", id, b"", priority=priority, due_at=due, expires_at=expires_at)

        assert added == (id not in self.model)
        if added:
            self.model[id] = Modelled(priority, self.now + wait * TICK, self.now + (wait + 20) * TICK)

    @rule(ticks=st.integers(1, 12))
    def time_passes(self, ticks: int) -> None:
        self.now += ticks * TICK
        self.db.offset_ms += ticks * TICK * 1000

    def due(self, state: str) -> list[str]:
        return [id for id, job in self.model.items() if job.state == state and job.due <= self.now]

    def record_claim(self, job: Job, *, crashed: bool = False) -> None:
        modelled = self.model[job.id]
        modelled.state, modelled.due = "running", self.now + LEASE
        modelled.claims += 1
        modelled.crashes += crashed
        assert (job.claims, job.attempted, job.failures) == (modelled.claims, modelled.attempted, modelled.failures)
        self.held.append(job)

    @rule(slots=st.integers(1, 4))
    def claim(self, slots: int) -> None:
        due = self.due("queued")
        claimed: tuple[Job, ...] = self.do(jobs.claim, QUEUE, slots).jobs

        assert len(claimed) == min(slots, len(due))
        left = set(due) - {job.id for job in claimed}
        order = {id: (self.model[id].priority, self.model[id].due) for id in due}
        assert all(order[job.id] <= order[other] for job in claimed for other in left)
        for job in claimed:
            self.record_claim(job)

    @rule()
    def claim_stalled(self) -> None:
        due = self.due("running")
        claimed: tuple[Job, ...] = self.do(jobs.claim, QUEUE, 4, stalled=True).jobs

        assert len(claimed) == min(1, len(due))
        for job in claimed:
            self.record_claim(job, crashed=True)

    @rule(id=IDS)
    def claim_one(self, id: str) -> None:
        job = self.do(jobs.claim_one, QUEUE, id)

        modelled = self.model.get(id)
        free = modelled is not None and (modelled.state == "queued" or id in self.due("running"))
        assert (job is not None) == free
        if job is not None:
            self.record_claim(job)

    def owns(self, job: Job) -> bool:
        modelled = self.model[job.id]
        return modelled.state == "running" and modelled.claims == job.claims

    @precondition(lambda self: self.held)
    @rule(data=st.data(), timeout=st.sampled_from([0.5, 4.5, 20.5]))
    def mark_attempted(self, data: st.DataObject, timeout: float) -> None:
        job = data.draw(st.sampled_from(self.held))
        allowed = self.owns(job) and self.model[job.id].due >= self.now + timeout * TICK
        if self.refused(jobs.mark_attempted, job, int(timeout * TICK * 1000)):
            assert not allowed
        else:
            assert allowed
            self.model[job.id].attempted = 1

    def refused(self, transaction: Any, *args: Any, **kwargs: Any) -> bool:
        try:
            self.do(transaction, *args, **kwargs)
        except LeaseLost:
            return True
        return False

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(), kind=st.sampled_from(["done", "later", "failed", "dead"]), definite=st.booleans(), ticks=TICKS
    )
    def outcome(self, data: st.DataObject, kind: str, definite: bool, ticks: int) -> None:
        job = data.draw(st.sampled_from(self.held))
        self.held.remove(job)
        stored = replace(job, attempted=0 if definite else 1)
        delay = ticks * TICK
        owned = self.owns(job)
        calls: dict[str, tuple[Any, ...]] = {
            "done": (jobs.complete, stored, Complete()),
            "later": (jobs.snooze, stored, Snooze(delay, "because")),
            "failed": (jobs.fail, stored, float(delay), "why", remember),
            "dead": (jobs.discard, stored, "because", remember),
        }
        assert self.refused(*calls[kind]) == (not owned)
        if not owned:
            return
        modelled = self.model[job.id]
        modelled.attempted, modelled.crashes = stored.attempted, 0
        modelled.failures += kind == "failed"
        over = modelled.failures >= jobs.MIN_TRIES and self.now + delay >= modelled.expires_at
        if kind in {"later", "failed"}:
            modelled.due = self.now + delay
        modelled.state = kind if kind in {"done", "dead"} else "dead" if kind == "failed" and over else "queued"

    @rule(id=IDS, act=st.sampled_from(["cancel", "replay", "park", "unpark"]))
    def operate(self, id: str, act: str) -> None:
        functions = {
            "cancel": jobs.cancel,
            "replay": operations.replay,
            "park": operations.park,
            "unpark": operations.unpark,
        }
        did = self.do(functions[act], "post", id)

        job = self.model.get(id)
        allowed = {
            "cancel": job is not None and job.state in {"queued", "parked"} and not job.attempted,
            "replay": job is not None and job.state == "dead",
            "park": job is not None and job.state in {"queued", "dead"},
            "unpark": job is not None and job.state == "parked",
        }
        assert did == allowed[act]
        if not did or job is None:
            return
        job.state = {"cancel": "cancelled", "replay": "queued", "park": "parked", "unpark": "queued"}[act]
        if act in {"replay", "unpark"}:
            job.failures = job.crashes = 0
        if act == "replay":
            job.due = self.now

    @rule(id=IDS, ticks=TICKS)
    def reschedule(self, id: str, ticks: int) -> None:
        row = self.do(rows, "SELECT now_ms() AS now")[0]
        did = self.do(jobs.reschedule, "post", id, row["now"] + ticks * TICK * 1000)

        job = self.model.get(id)
        assert did == (job is not None and job.state == "queued" and not job.attempted)
        if did and job is not None:
            due = self.now + ticks * TICK
            job.expires_at, job.due = job.expires_at + due - job.due, due

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        columns = "id, priority, state, claims, attempted, failures, crashes"
        found = self.do(rows, f"SELECT {columns}, due_at - now_ms() AS wait FROM job WHERE queue = 'post'")

        assert {row["id"] for row in found} == set(self.model)
        for row in found:
            job = self.model[row["id"]]
            expected = (job.priority, job.state, job.claims, job.attempted, job.failures, job.crashes)
            assert tuple(row[name] for name in columns.split(", ")[1:]) == expected
            if job.state in {"queued", "running"}:
                assert abs(row["wait"] / 1000 - (job.due - self.now)) < TICK / 2


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_queue_behaves_as_its_model(backend: str, request: pytest.FixtureRequest) -> None:
    class Machine(QueueBesideModel):
        url = ""

    if backend == "postgres":
        server: Cluster = request.getfixturevalue("postgres")
        Machine.url = server.database()
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=80, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )
