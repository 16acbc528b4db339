"""
Every change of every payment, in one order, for those who watch.

The numbers come from a counter of one row, raised and used by the last two statements of a transaction: its lock is
held until the commit, so numbers become visible in their order. With a sequence, a watcher would pass the change of a
slow transaction and never see it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from services.chassis.database import Database, Row, one, rows
from services.chassis.errors import InvalidRequest, OutOfRange, Unavailable
from services.chassis.violations import Rule
from services.payments.lattice import PREFIX, status_of
from topsmile.payments.v1 import payments_pb2 as pb

POLL = 0.25
HEARTBEAT = 25.0
BATCH = 100
HOUSEKEEPING = 60.0
TOO_OLD = "changes after this cursor are no longer kept: read the payments, then watch from the oldest"
DAY = 86_400_000
KEPT = 30 * DAY
#: Stripe repeats an event for 3 days and lists it for 30.
EVENTS_KEPT = 35 * DAY

COUNT = "UPDATE change_counter SET number = number + 1 WHERE id = 1 RETURNING number"
APPEND = """
    INSERT INTO payment_change (number, previous_status, record, changed_at)
    VALUES (:number, :previous_status, :record, :changed_at)
"""
BOUNDS = "SELECT number, purged FROM change_counter WHERE id = 1"
FOLLOWING = """
    SELECT number, previous_status, record, changed_at FROM payment_change
    WHERE number > :after ORDER BY number LIMIT :most
"""
PURGE = """
    DELETE FROM payment_change WHERE changed_at < now_ms() - :kept AND number IN (
        SELECT number FROM payment_change ORDER BY number LIMIT :most)
    RETURNING number
"""
PURGED = "UPDATE change_counter SET purged = :purged WHERE id = 1 AND purged < :purged"
PURGE_EVENTS = """
    DELETE FROM stripe_event WHERE event_id IN (
        SELECT event_id FROM stripe_event WHERE applied_at < now_ms() - :kept ORDER BY applied_at LIMIT :most)
    RETURNING event_id
"""


async def append(previous: pb.Payment | None, record: pb.Payment) -> None:
    """Await this last in a transaction. None: the payment is new."""
    number = (await one(COUNT))["number"]
    await rows(
        APPEND,
        number=number,
        previous_status="UNSPECIFIED" if previous is None else status_of(previous),
        record=record.SerializeToString(),
        changed_at=record.update_time.ToMilliseconds(),
    )


async def bounds() -> tuple[int, int]:
    """Return the number of the last change and of the last one forgotten."""
    row = await one(BOUNDS)
    return row["number"], row["purged"]


async def forget() -> int:
    """Forget a small batch of what is too old; 0: nothing was left to forget."""
    gone = await rows(PURGE, kept=KEPT, most=500)
    if gone:
        await rows(PURGED, purged=max(row["number"] for row in gone))
    return max(len(gone), len(await rows(PURGE_EVENTS, kept=EVENTS_KEPT, most=500)))


class ChangeLog:
    """One look at the counter for all watchers of this process; each of them reads small batches at its own pace."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest = 0
        self._news = asyncio.Event()  # set for those who wait, then replaced
        self._woken = asyncio.Event()
        self._draining = False
        self._stopping = False

    def wake(self) -> None:
        """Look now: this process may have just stored a change."""
        self._woken.set()

    def drain(self) -> None:
        """End all watches."""
        self._draining = True
        self._tell()

    def stop(self) -> None:
        self.drain()
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        tidy_at = loop.time()
        while not self._stopping:
            self._woken.clear()
            with suppress(Unavailable):  # watchers wait until the database is back
                latest, _ = await self._database.read(bounds)
                if latest != self._latest:
                    self._latest = latest
                    self._tell()
                if loop.time() >= tidy_at:
                    tidy_at = loop.time() + (0.0 if await self._database.run(forget) else HOUSEKEEPING)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL)

    async def watch(self, cursor: str) -> AsyncIterator[pb.WatchPaymentsResponse]:
        after = await self._begin(cursor)
        while True:
            news = self._news
            batch = await self._database.read(rows, FOLLOWING, after=after, most=BATCH)
            if batch and batch[0]["number"] != after + 1:  # numbers have no gaps: this watcher was too slow
                raise OutOfRange(TOO_OLD)
            for row in batch:
                after = row["number"]
                yield pb.WatchPaymentsResponse(cursor=cursor_of(after), change=change_of(row))
            if self._draining:
                raise Unavailable("this replica is being stopped; watch again from your cursor")
            if len(batch) == BATCH:
                continue
            try:
                await asyncio.wait_for(news.wait(), HEARTBEAT)
            except TimeoutError:
                yield pb.WatchPaymentsResponse(cursor=cursor_of(after))

    async def _begin(self, cursor: str) -> int:
        latest, purged = await self._database.read(bounds)
        if not cursor:
            return purged
        after = number_of(cursor)
        if after is None or after > latest:
            raise InvalidRequest([Rule.NOT_A_CURSOR.at("cursor")])
        if after < purged:
            raise OutOfRange(TOO_OLD)
        return after

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def cursor_of(number: int) -> str:
    return f"c{number}"


def number_of(cursor: str) -> int | None:
    return int(cursor[1:]) if re.fullmatch(r"c[0-9]{1,18}", cursor) else None


def change_of(row: Row) -> pb.PaymentChange:
    change = pb.PaymentChange(
        payment=pb.Payment.FromString(bytes(row["record"])),
        previous_status=pb.PaymentStatus.Value(PREFIX + row["previous_status"]),
    )
    change.change_time.FromMilliseconds(row["changed_at"])
    return change
