"""Events in any order, repeated and mixed with answers and readings, lead to where the payment stands at Stripe."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, rows
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.retry import Retry
from services.chassis.queue import jobs
from services.chassis.queue.jobs import Complete, Queue
from services.chassis.rpc.idempotency import Fingerprints
from services.payments import store, transitions
from services.payments.__main__ import MIGRATIONS
from services.payments.provider import PaymentSnapshot, Status
from services.payments.requests import PaymentRequest
from services.payments.sender import Sender
from services.payments.status import status_of
from tests.fakes.payment_provider import FakeProvider, snapshot
from tests.fakes.payments_service import payment_request

ID = "pay_1"


class Moment(NamedTuple):
    status: Status
    declined: bool = False


# Where Stripe lets a PaymentIntent go: https://docs.stripe.com/payments/paymentintents/lifecycle
NEXT: dict[Moment, list[Moment]] = {
    Moment("AWAITING_METHOD"): [Moment("AWAITING_CUSTOMER"), Moment("PROCESSING"), Moment("CANCELED")],
    Moment("AWAITING_METHOD", declined=True): [Moment("AWAITING_CUSTOMER"), Moment("PROCESSING"), Moment("CANCELED")],
    Moment("AWAITING_CUSTOMER"): [Moment("PROCESSING"), Moment("AWAITING_METHOD", declined=True), Moment("AUTHORIZED")],
    Moment("PROCESSING"): [Moment("SUCCEEDED"), Moment("AWAITING_METHOD", declined=True)],
    Moment("AUTHORIZED"): [Moment("SUCCEEDED"), Moment("CANCELED")],
    Moment("SUCCEEDED"): [],
    Moment("CANCELED"): [],
}


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[Moment], list[str]]:
    """What happened, and what of it is heard in which order: events (some twice), the answer, readings in between."""
    story = [Moment("AWAITING_METHOD")]
    for _ in range(draw(st.integers(0, 6))):
        if following := NEXT[story[-1]]:
            story.append(draw(st.sampled_from(following)))
    events = [f"event {n}" for n in range(len(story))]
    twice = draw(st.lists(st.sampled_from(events), max_size=2))
    return story, draw(st.permutations([*events, *twice, "answer", "reading", "reading"]))


class World:
    """One payment that waits for its answer, on a database of its own."""

    def __init__(self, database: Database, story: list[Moment]) -> None:
        self.database = database
        self.told = [snapshot(ID, status, declined=declined) for status, declined in story]
        self.provider = FakeProvider(self.told[-1])
        sender = Sender(database, self.provider, CircuitBreaker("fake"), Retry())
        self.queue = Queue(store.QUEUE, sender.handle, store.on_discarded)

    async def open(self) -> None:
        wanted = PaymentRequest.from_request(payment_request())
        new = store.NewPayment(
            record=wanted.record(ID, "local", livemode=False),
            caller="local",
            idempotency_key="key-1",
            fingerprint=Fingerprints()(wanted.fingerprint_fields),
            allow_another=False,
            confirmed=False,
            prepared=b"",
            trace="",
        )
        await self.database.run(store.open_payment, self.queue, new)

    async def hear(self, what: str) -> None:
        if what == "answer":
            await self.database.run(transitions.apply_creation, ID, self.told[0], False)
        elif what == "reading":
            await self.read()
        else:
            report: PaymentSnapshot = self.told[int(what.split()[1])]
            await self.database.run(transitions.apply_report, what, report)

    async def read(self) -> None:
        """Do what waits in the queue; the payment's own job was claimed by the call that opened it."""
        while claimed := (await self.database.run(jobs.claim, self.queue, 10)).jobs:
            for job in claimed:
                outcome = await self.queue.handler(job, mark_attempted)
                assert isinstance(outcome, Complete)
                await self.database.run(jobs.complete, job, outcome)


async def mark_attempted(_seconds: float, _transaction: object = None, /, *_args: object) -> None:
    raise AssertionError("a reading takes nothing")


async def end_of(story: list[Moment], heard: list[str], folder: Path) -> tuple[store.Stored, list[str]]:
    async with connect(f"sqlite:///{folder}/p.db", MIGRATIONS) as database:
        world = World(database, story)
        await world.open()
        for what in heard:
            await world.hear(what)
        await world.read()
        seen = [row["previous_status"] for row in await database.read(rows, CHANGES)]
        return await database.read(store.get, ID), seen


CHANGES = "SELECT previous_status FROM payment_change ORDER BY number"


@settings(max_examples=80)
@given(stories())
def test_any_order_ends_where_the_payment_stands(made: tuple[list[Moment], list[str]]) -> None:
    story, heard = made
    with TemporaryDirectory() as folder:
        end, previous = asyncio.run(end_of(story, heard, Path(folder)))

    assert (status_of(end.record), end.record.HasField("decline")) == story[-1]
    assert end.client_secret == "pi_1_secret_1"
    assert end.settled
    assert not {"SUCCEEDED", "CANCELED"} & set(previous) or story[-1].status in previous
