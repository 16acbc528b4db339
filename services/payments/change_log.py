"""
Every change of every payment, in one order, for those who watch.

The numbers come from a counter of one row, raised and used by the last two statements of a transaction: its lock is
held until the commit, so numbers become visible in their order. With a sequence, a watcher would pass the change of a
slow transaction and never see it.

A cursor is a number and that row's random token. A database restored from a backup gives the number to another change,
but not the token: its watchers are told so, where they would have waited, and then gone on behind what they missed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from services.chassis import context
from services.chassis.database.transactions import Database, Row, maybe_one, one, rows
from services.chassis.errors import InvalidRequest, OutOfRange, Unavailable
from services.chassis.violations import Rule
from services.payments.status import PREFIX, status_of
from topsmile.payments.v1 import payments_pb2 as pb

POLL_INTERVAL = 0.25
HEARTBEAT_INTERVAL = 25.0
MAX_BATCH = 100
MAINTENANCE_INTERVAL = 60.0
DAY = 86_400_000
RETENTION = 30 * DAY
#: Stripe repeats an event for 3 days and lists it for 30.
EVENT_RETENTION = 35 * DAY

COUNT = "UPDATE change_counter SET number = number + 1 WHERE id = 1 RETURNING number"
APPEND = """
    INSERT INTO payment_change (number, token, caller, previous_status, record, changed_at, correlation_id)
    VALUES (:number, CAST(random() AS TEXT), :caller, :previous_status, :record, :changed_at, :correlation_id)
"""
BOUNDS = "SELECT number, purged FROM change_counter WHERE id = 1"
NEWEST = "SELECT number, token FROM payment_change ORDER BY number DESC LIMIT 1"
BY_NUMBER = "SELECT token FROM payment_change WHERE number = :number"
FOLLOWING = """
    SELECT number, token, previous_status, record, changed_at, correlation_id FROM payment_change
    WHERE number > :after AND number <= :newest ORDER BY number LIMIT :most
"""
FOLLOWING_OF_ONE = FOLLOWING.replace("WHERE", "WHERE caller = :owner AND")
# The newest stays: the cursors of those who have seen everything are told by it.
PURGE = """
    DELETE FROM payment_change WHERE changed_at < now_ms() - :kept AND number IN (
        SELECT number FROM payment_change WHERE number < (SELECT number FROM change_counter WHERE id = 1)
        ORDER BY number LIMIT :most)
    RETURNING number
"""
PURGED = "UPDATE change_counter SET purged = :purged WHERE id = 1 AND purged < :purged"
PURGE_EVENTS = """
    DELETE FROM stripe_event WHERE event_id IN (
        SELECT event_id FROM stripe_event WHERE applied_at < now_ms() - :kept ORDER BY applied_at LIMIT :most)
    RETURNING event_id
"""


async def count() -> int:
    """Take the next number, and keep it from all others until the commit."""
    return int((await one(COUNT))["number"])


async def append(previous: pb.Payment | None, record: pb.Payment, number: int | None = None) -> None:
    """Await this last in a transaction. `previous` None: the payment is new; `number` None: none is counted yet."""
    await rows(
        APPEND,
        number=await count() if number is None else number,
        caller=record.caller,
        previous_status="UNSPECIFIED" if previous is None else status_of(previous),
        record=record.SerializeToString(),
        changed_at=record.update_time.ToMilliseconds(),
        correlation_id=context.correlation_id.get(),
    )


async def bounds() -> tuple[int, int]:
    """Return the number of the last change and of the last one forgotten."""
    row = await one(BOUNDS)
    return row["number"], row["purged"]


class Cursor(NamedTuple):
    number: int = 0
    token: str = ""

    def __str__(self) -> str:
        """Write it for a watcher; empty: before the oldest change that is kept."""
        return f"c{self.number}.{self.token}" if self.number else ""


async def following(cursor: Cursor, owner: str | None) -> tuple[Sequence[Row], Cursor]:
    """Read the changes after a cursor, and the cursor after them. Raises OutOfRange for a cursor of another log."""
    row = await maybe_one(NEWEST)
    newest = Cursor(row["number"], row["token"]) if row else cursor
    about = {"after": cursor.number, "newest": newest.number, "most": MAX_BATCH}
    found = await (rows(FOLLOWING, **about) if owner is None else rows(FOLLOWING_OF_ONE, owner=owner, **about))
    # Last: as long as the cursor's row is there, nothing behind it has been purged.
    if cursor.number:
        await _check(cursor)
    return found, Cursor(found[-1]["number"], found[-1]["token"]) if len(found) == MAX_BATCH else newest


async def _check(cursor: Cursor) -> None:
    row = await maybe_one(BY_NUMBER, number=cursor.number)
    if row is not None and row["token"] == cursor.token:
        return
    _, purged = await bounds()
    if row is None and cursor.number <= purged:
        raise OutOfRange("changes after this cursor are no longer kept: read the payments, then watch without a cursor")
    raise OutOfRange(
        "this database never gave this cursor: read the payments, then watch without a cursor", reason="CURSOR_UNKNOWN"
    )


async def purge() -> int:
    """Forget a small batch of what is too old; 0: nothing was left to forget."""
    gone = await rows(PURGE, kept=RETENTION, most=500)
    if gone:
        await rows(PURGED, purged=max(row["number"] for row in gone))
    return max(len(gone), len(await rows(PURGE_EVENTS, kept=EVENT_RETENTION, most=500)))


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
        self._notify()

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
                    self._notify()
                if loop.time() >= tidy_at:
                    tidy_at = loop.time() + (0.0 if await self._database.run(purge) else MAINTENANCE_INTERVAL)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_INTERVAL)

    async def watch(self, cursor: str, owner: str | None) -> AsyncIterator[pb.WatchPaymentsResponse]:
        """Tell the changes of one caller's payments, or of everybody's where `owner` is None. Raises OutOfRange."""
        after = read_cursor(cursor)
        while True:
            news = self._news
            batch, end = await self._database.read(following, after, owner)
            for row in batch:
                after = Cursor(row["number"], row["token"])
                yield pb.WatchPaymentsResponse(cursor=str(after), change=change_of(row))
            after = end
            if self._draining:
                raise Unavailable("this replica is being stopped; watch again from your cursor")
            if len(batch) == MAX_BATCH:
                continue
            try:
                await asyncio.wait_for(news.wait(), HEARTBEAT_INTERVAL)
            except TimeoutError:
                yield pb.WatchPaymentsResponse(cursor=str(after))

    def _notify(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def read_cursor(text: str) -> Cursor:
    match = re.fullmatch(r"c([1-9][0-9]{0,17})\.([!-~]{1,40})", text, re.ASCII)
    if text and match is None:
        raise InvalidRequest([Rule.NOT_A_CURSOR.at("cursor")])
    return Cursor(int(match[1]), match[2]) if match else Cursor()


def change_of(row: Row) -> pb.PaymentChange:
    change = pb.PaymentChange(
        payment=pb.Payment.FromString(bytes(row["record"])),
        previous_status=pb.PaymentStatus.Value(PREFIX + row["previous_status"]),
        correlation_id=row["correlation_id"],
    )
    change.change_time.FromMilliseconds(row["changed_at"])
    return change
