"""Events as received: stored with their delivery jobs before the provider hears 200, and forgotten in time."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from services.chassis.database.transactions import Database, Row, maybe_one, one, rows
from services.chassis.errors import Unavailable
from services.chassis.queue import jobs

#: Which service owns a provider; its name is the queue's.
OWNERS = {"stripe": "payments", "sendgrid": "email", "twilio": "sms"}

DAY_MS = 86_400_000
#: How long a delivery is tried. Stripe itself gives up after three days.
TRIED_FOR_MS = 3 * DAY_MS
#: Bodies name people, so they go early; ids stay for as long as a provider might repeat them.
BODIES_KEPT_MS, IDS_KEPT_MS = 7 * DAY_MS, 35 * DAY_MS
MAX_CONCURRENT = 500
#: Outcomes, an empty one included, of events of which nothing is known to be applied.
NOT_APPLIED = {"", "REJECTED", "DEAD"}

TAKE = """
    INSERT INTO inbox (provider, event_id, type, account, livemode, body, query, received_at)
    VALUES (:provider, :event_id, :type, :account, :livemode, :body, :query, now_ms())
    ON CONFLICT (provider, event_id) DO NOTHING
    RETURNING received_at
"""
FIND = """
    SELECT provider, event_id, type, account, livemode, body, query, received_at, outcome, detail, erased
    FROM inbox WHERE provider = :provider AND event_id = :event_id
"""
LEARN = """
    UPDATE inbox SET outcome = :outcome, detail = :detail, finished_at = now_ms()
    WHERE provider = :provider AND event_id = :event_id
"""
GIVE_UP = """
    UPDATE inbox SET outcome = 'DEAD', detail = :reason, finished_at = now_ms()
    WHERE provider = :provider AND event_id = :event_id
"""
# What was given up may be replayed for as long as its dead letter is kept, which is as long as ids are.
ERASE = """
    UPDATE inbox SET body = :nothing, query = '', erased = 1 WHERE (provider, event_id) IN (
        SELECT provider, event_id FROM inbox
        WHERE erased = 0 AND finished_at < now_ms() - :kept AND finished_at IS NOT NULL
            AND (outcome <> 'DEAD' OR finished_at < now_ms() - :dead_kept)
        ORDER BY finished_at LIMIT :max_rows)
    RETURNING event_id
"""
FORGET = """
    DELETE FROM inbox WHERE (provider, event_id) IN (
        SELECT provider, event_id FROM inbox
        WHERE erased = 1 AND finished_at < now_ms() - :kept AND finished_at IS NOT NULL
        ORDER BY finished_at LIMIT :max_rows)
    RETURNING event_id
"""


class Event(NamedTuple):
    """
    `event_id` is the same for the same fact told again; `account` and `livemode` are Stripe's alone.

    Before its last `/` may stand what tells rows apart, and is not the provider's: an account, a body.
    """

    provider: str
    event_id: str
    type: str
    body: bytes
    account: str = ""
    livemode: int = 0
    query: str = ""


async def take(events: Sequence[Event], trace: str) -> int:
    """Store what is new, each with the job that delivers it; answers how many that are."""
    new = 0
    for event in events:
        row = await maybe_one(TAKE, **event._asdict())
        if row is None and (other := await _other_body(event)) is not None:
            event = other  # noqa: PLW2901 - the same event under another id
            row = await maybe_one(TAKE, **event._asdict())
        if row is not None:
            new += 1
            expires_at = row["received_at"] + TRIED_FOR_MS
            queue, job = OWNERS[event.provider], f"event:{event.event_id}"
            await jobs.add(queue, job, b"", expires_at=expires_at, trace=trace)
    return new


async def _other_body(event: Event) -> Event | None:
    """
    Return an event that came before in another body, under an id for this body; None where it need not be delivered.

    Only an event that was applied stands in its own way: a provider renders one for each version of its API. The
    service that owns it sees that both are one event.
    """
    stored = await find(event.provider, event.event_id)
    if stored is None or stored["outcome"] not in NOT_APPLIED or bytes(stored["body"]) == event.body:
        return None
    digest = hashlib.sha256(event.body).hexdigest()[:16]
    return event._replace(event_id=f"{digest}/{event.event_id}")


async def find(provider: str, event_id: str) -> Row | None:
    return await maybe_one(FIND, provider=provider, event_id=event_id)


async def learn(provider: str, event_id: str, outcome: str, detail: str) -> None:
    await rows(LEARN, provider=provider, event_id=event_id, outcome=outcome, detail=detail)


async def give_up(provider: str, event_id: str, reason: str) -> None:
    await rows(GIVE_UP, provider=provider, event_id=event_id, reason=reason)


async def forget() -> bool:
    """Forget a batch of what is old enough; True if there may be more."""
    erased = await rows(ERASE, kept=BODIES_KEPT_MS, dead_kept=IDS_KEPT_MS, max_rows=MAX_CONCURRENT, nothing=b"")
    forgotten = await rows(FORGET, kept=IDS_KEPT_MS, max_rows=MAX_CONCURRENT)
    return len(erased) == MAX_CONCURRENT or len(forgotten) == MAX_CONCURRENT


async def cursor_of(stream: str) -> str:
    return str((await one("SELECT cursor FROM watch_cursor WHERE stream = :stream", stream=stream))["cursor"])


async def advance(stream: str, before: str, after: str) -> bool:
    """Move a cursor from where the caller saw it; False if another replica was there first."""
    moved = await maybe_one(
        "UPDATE watch_cursor SET cursor = :after WHERE stream = :stream AND cursor = :before RETURNING stream",
        stream=stream,
        before=before,
        after=after,
    )
    return moved is not None


class Retention:
    """Runs beside the queues' workers and keeps the inbox small."""

    def __init__(self, database: Database, every: float = 60.0) -> None:
        self._database = database
        self._every = every
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        while not self._stopped.is_set():
            more = False
            with suppress(Unavailable):
                more = await self._database.run(forget)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 0.1 if more else self._every)
