"""
The log of every change of every payment, in commit order, for watchers.

The numbers come from a counter of one row. The last two statements of a transaction raise it and use it. The lock lasts
until the commit, so numbers become visible in their order. With a sequence, a watcher would skip the change of a slow
transaction.

A cursor is a number and the random token of that row. A database that was restored from a backup gives the number to
another change, with another token. The watcher then gets an error and does not miss changes silently.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
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
#: Milliseconds. Stripe repeats an event for 3 days and lists it for 30.
EVENT_RETENTION = 35 * DAY

COUNT = "UPDATE change_counter SET number = number + 1 WHERE id = 1 RETURNING number"
APPEND = """
    INSERT INTO payment_change (number, token, caller, payment_id, appointment_id, previous_status, record, changed_at,
        correlation_id)
    VALUES (:number, CAST(random() AS TEXT), :caller, :payment_id, :appointment_id, :previous_status, :record,
        :changed_at, :correlation_id)
"""
BOUNDS = "SELECT number, purged FROM change_counter WHERE id = 1"
NEWEST = "SELECT number, token FROM payment_change ORDER BY number DESC LIMIT 1"
BY_NUMBER = "SELECT token FROM payment_change WHERE number = :number"
FOLLOWING = """
    SELECT number, token, previous_status, record, changed_at, correlation_id FROM payment_change
    WHERE number > :after AND number <= :newest ORDER BY number LIMIT :max_rows
"""
# Keep the newest change: the cursors of up-to-date watchers refer to it.
PURGE = """
    DELETE FROM payment_change WHERE changed_at < now_ms() - :retention AND number IN (
        SELECT number FROM payment_change WHERE number < (SELECT number FROM change_counter WHERE id = 1)
        ORDER BY number LIMIT :max_rows)
    RETURNING number
"""
PURGED = "UPDATE change_counter SET purged = :purged WHERE id = 1 AND purged < :purged"
PURGE_EVENTS = """
    DELETE FROM stripe_event WHERE event_id IN (
        SELECT event_id FROM stripe_event WHERE applied_at < now_ms() - :retention ORDER BY applied_at LIMIT :max_rows)
    RETURNING event_id
"""


async def count() -> int:
    """Return the next number, and lock the counter until the commit."""
    return int((await one(COUNT))["number"])


async def append(previous: pb.Payment | None, record: pb.Payment, number: int | None = None) -> None:
    """Store a change. Await this last in a transaction. `previous` None: the payment is new."""
    await rows(
        APPEND,
        number=await count() if number is None else number,
        caller=record.caller,
        payment_id=record.payment_id,
        appointment_id=record.appointment_id,
        previous_status="UNSPECIFIED" if previous is None else status_of(previous),
        record=record.SerializeToString(),
        changed_at=record.update_time.ToMilliseconds(),
        correlation_id=context.correlation_id.get(),
    )


async def bounds() -> tuple[int, int]:
    """Return the numbers of the newest change and of the newest purged one."""
    row = await one(BOUNDS)
    return row["number"], row["purged"]


class Cursor(NamedTuple):
    number: int = 0
    token: str = ""

    def __str__(self) -> str:
        """Return the text for a watcher. Empty: before the oldest change kept."""
        return f"c{self.number}.{self.token}" if self.number else ""


async def newest_cursor() -> Cursor:
    """Return the cursor of the newest change; the empty cursor if there is none."""
    row = await maybe_one(NEWEST)
    return Cursor(row["number"], row["token"]) if row else Cursor()


async def following(cursor: Cursor, filters: Mapping[str, str]) -> tuple[Sequence[Row], Cursor]:
    """
    Return the changes after a cursor, and the cursor after them. Raise OutOfRange for an unknown cursor.

    `filters` holds the wanted values by column.
    """
    newest = await newest_cursor()
    if not newest.number:
        newest = cursor
    window = {"after": cursor.number, "newest": newest.number, "max_rows": MAX_BATCH}
    conditions = "".join(f"{column} = :{column} AND " for column in filters)
    found = await rows(FOLLOWING.replace("WHERE ", f"WHERE {conditions}"), **window, **filters)
    # Check last: while the cursor's row exists, no change after it has been purged.
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
        "this database did not issue this cursor: read the payments, then watch without a cursor",
        reason="CURSOR_UNKNOWN",
    )


async def purge() -> int:
    """Delete a batch of expired changes and events. Return the size of the larger one."""
    purged = await rows(PURGE, retention=RETENTION, max_rows=500)
    if purged:
        await rows(PURGED, purged=max(row["number"] for row in purged))
    return max(len(purged), len(await rows(PURGE_EVENTS, retention=EVENT_RETENTION, max_rows=500)))


class ChangeLog:
    """Poll the counter once for all watchers of this process. Each watcher reads batches at its own speed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest = 0
        self._changed = asyncio.Event()  # set for the waiting watchers, then replaced
        self._woken = asyncio.Event()
        self._draining = False
        self._stopping = False

    def wake(self) -> None:
        """Poll now: this process may have stored a change."""
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
        purge_at = loop.time()
        while not self._stopping:
            self._woken.clear()
            with suppress(Unavailable):  # watchers wait until the database is back
                latest, _ = await self._database.read(bounds)
                if latest != self._latest:
                    self._latest = latest
                    self._notify()
                if loop.time() >= purge_at:
                    purge_at = loop.time() + (0.0 if await self._database.run(purge) else MAINTENANCE_INTERVAL)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_INTERVAL)

    async def watch(
        self, cursor: str, filters: Mapping[str, str], *, from_now: bool = False
    ) -> AsyncIterator[pb.WatchPaymentsResponse]:
        """Yield the changes after a cursor or from now. `filters`: see `following`. Raise OutOfRange."""
        after = read_cursor(cursor)
        if from_now:
            after = await self._database.read(newest_cursor)
            yield pb.WatchPaymentsResponse(cursor=str(after))
        while True:
            changed = self._changed
            batch, end = await self._database.read(following, after, filters)
            for row in batch:
                after = Cursor(row["number"], row["token"])
                yield pb.WatchPaymentsResponse(cursor=str(after), change=change_of(row))
            after = end
            if self._draining:
                raise Unavailable("this replica is stopping: watch again from your cursor")
            if len(batch) == MAX_BATCH:
                continue
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_INTERVAL)
            except TimeoutError:
                yield pb.WatchPaymentsResponse(cursor=str(after))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


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
