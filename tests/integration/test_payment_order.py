"""Events in any order, repeated and mixed with responses and readings, end in Stripe's state."""

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
from services.payments import opening, store, transitions
from services.payments.__main__ import MIGRATIONS
from services.payments.provider import PaymentSnapshot, Status
from services.payments.requests import PaymentRequest
from services.payments.sender import Sender
from services.payments.status import status_of
from tests.fakes.payment_provider import FakeProvider, snapshot
from tests.fakes.payments_service import payment_request

ID = "pay_1"


class State(NamedTuple):
    status: Status
    declined: bool = False


# Where Stripe lets a PaymentIntent go: https://docs.stripe.com/payments/paymentintents/lifecycle
NEXT: dict[State, list[State]] = {
    State("AWAITING_METHOD"): [State("AWAITING_CUSTOMER"), State("PROCESSING"), State("CANCELED")],
    State("AWAITING_METHOD", declined=True): [State("AWAITING_CUSTOMER"), State("PROCESSING"), State("CANCELED")],
    State("AWAITING_CUSTOMER"): [State("PROCESSING"), State("AWAITING_METHOD", declined=True), State("AUTHORIZED")],
    State("PROCESSING"): [State("SUCCEEDED"), State("AWAITING_METHOD", declined=True)],
    State("AUTHORIZED"): [State("SUCCEEDED"), State("CANCELED")],
    State("SUCCEEDED"): [],
    State("CANCELED"): [],
}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[State], list[str]]:
    """Return the states of a payment, and an order of reports: events (some repeated), the response, readings."""
    history = [State("AWAITING_METHOD")]
    for _ in range(draw(st.integers(0, 6))):
        if following := NEXT[history[-1]]:
            history.append(draw(st.sampled_from(following)))
    events = [f"event {n}" for n in range(len(history))]
    twice = draw(st.lists(st.sampled_from(events), max_size=2))
    return history, draw(st.permutations([*events, *twice, "response", "reading", "reading"]))


class PaymentUnderTest:
    """One payment that waits for its response, on its own database."""

    def __init__(self, database: Database, history: list[State]) -> None:
        self.database = database
        self.snapshots = [snapshot(ID, status, declined=declined) for status, declined in history]
        self.provider = FakeProvider(self.snapshots[-1])
        sender = Sender(database, self.provider, CircuitBreaker("fake"), Retry())
        self.queue = Queue(store.QUEUE, sender.handle, store.on_discarded)

    async def open(self) -> None:
        wanted = PaymentRequest.from_request(payment_request())
        new = opening.NewPayment(
            record=wanted.record(ID, "local", livemode=False),
            caller="local",
            idempotency_key="key-1",
            fingerprint=Fingerprints()(wanted.fingerprint_fields),
            allow_another=False,
            confirmed=False,
            prepared=b"",
            trace="",
        )
        await self.database.run(opening.open_payment, self.queue, new)

    async def receive(self, what: str) -> None:
        if what == "response":
            await self.database.run(transitions.apply_creation, ID, self.snapshots[0], False)
        elif what == "reading":
            await self.read()
        else:
            report: PaymentSnapshot = self.snapshots[int(what.split()[1])]
            await self.database.run(transitions.apply_report, what, report)

    async def read(self) -> None:
        """Do what waits in the queue; the payment's own job was claimed by the call that opened it."""
        while claimed := (await self.database.run(jobs.claim, self.queue, 10)).jobs:
            for job in claimed:
                outcome = await self.queue.handler(job, mark_attempted)
                assert isinstance(outcome, Complete)
                await self.database.run(jobs.complete, job, outcome)


async def mark_attempted(_seconds: float, _transaction: object = None, /, *_args: object) -> None:
    raise AssertionError("a reading has no attempt to mark")


async def end_of(history: list[State], received: list[str], folder: Path) -> tuple[store.Stored, list[str]]:
    async with connect(f"sqlite:///{folder}/p.db", MIGRATIONS) as database:
        payment = PaymentUnderTest(database, history)
        await payment.open()
        for what in received:
            await payment.receive(what)
        await payment.read()
        seen = [row["previous_status"] for row in await database.read(rows, CHANGES)]
        return await database.read(store.get, ID), seen


CHANGES = "SELECT previous_status FROM payment_change ORDER BY number"


@settings(max_examples=80)
@given(histories())
def test_reports_in_any_order_end_in_stripes_state(example: tuple[list[State], list[str]]) -> None:
    history, received = example
    with TemporaryDirectory() as folder:
        end, previous = asyncio.run(end_of(history, received, Path(folder)))

    assert (status_of(end.record), end.record.HasField("decline")) == history[-1]
    assert end.client_secret == "pi_1_secret_1"
    assert end.settled
    assert not {"SUCCEEDED", "CANCELED"} & set(previous) or history[-1].status in previous
