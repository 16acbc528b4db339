"""
Messages and what became of them: transactions only.

A job's row is locked before its message's, by everybody: the worker that stores an outcome, and cancelling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.errors import CredentialsRefused, InvalidRequest, NotFound
from services.chassis.queue import jobs, rate_limit
from services.chassis.rpc.idempotency import Fingerprint
from services.chassis.violations import Rule
from services.messaging.events import StatusEvent
from services.messaging.provider import Receipt
from services.messaging.record import Change, MessageRecord, Waiting
from services.messaging.requests import CONFIRMATION, REMINDER, NewMessage, milliseconds
from services.messaging.status import ENDED, EVENT_RANKS, RANKS, REASONS
from topsmile.common.v1 import common_pb2 as common

SCHEMA = Path(__file__).with_name("schema")
#: Milliseconds after its last change that a message, its key, its attempts and its events' ids are kept.
RETENTION = 35 * 24 * 60 * 60 * 1000
#: Milliseconds after which the provider's id of a message is stored, if the message is ours.
SETTLED = 60_000
#: Messages in one batch of a purge, some five rows each.
MAX_PURGED = 10
#: Seconds until the next message is tried after one that the provider took was refused for our account's sake. Longer
#: than for credentials that are refused at once: each trial may cost a message.
ACCOUNT_PAUSE = 600.0

INSERT = """
    INSERT INTO message (message_id, caller, idempotency_key, fingerprint, template, recipient, recipient_name,
        appointment_id, revision, encoding, segments, status, rank, waiting_reason, scheduled_at, expires_at,
        created_at, updated_at)
    VALUES (:message_id, :caller, :key, :fingerprint, :template, :recipient, :recipient_name,
        :appointment_id, :revision, :encoding, :segments, :status, :rank, :waiting_reason,
        COALESCE(CAST(:due_at AS BIGINT), now_ms()),
        COALESCE(CAST(:expires_at AS BIGINT), COALESCE(CAST(:due_at AS BIGINT), now_ms()) + CAST(:lifetime AS BIGINT)),
        now_ms(), now_ms())
    ON CONFLICT (caller, idempotency_key) DO NOTHING
    RETURNING scheduled_at, expires_at, created_at
"""
# The seconds are those since 2026, which fit SEQUENCE until 2094.
REVISE = """
    INSERT INTO appointment (caller, appointment_id, revision, updated_at)
    VALUES (:caller, :appointment_id, now_ms() / 1000 - 1767225600, now_ms())
    ON CONFLICT (caller, appointment_id) DO UPDATE SET updated_at = excluded.updated_at, revision =
        CASE WHEN excluded.revision > appointment.revision THEN excluded.revision ELSE appointment.revision + 1 END
    RETURNING revision
"""
BY_KEY = "SELECT message_id, fingerprint FROM message WHERE caller = :caller AND idempotency_key = :key"

# `caller` NULL: a caller that sees the rows of all.
OWN = "(CAST(:caller AS TEXT) IS NULL OR message.caller = :caller)"
GET = f"""
    SELECT message_id, caller, template, recipient, recipient_name, appointment_id, revision, encoding, segments,
        status AS stored_status, rank, failure_reason, message.provider, provider_message_id, waiting_reason,
        scheduled_at, message.expires_at, message.created_at, updated_at, now_ms() AS now,
        COALESCE(job.state, '') AS job_state, COALESCE(job.due_at, 0) AS due_at, COALESCE(job.note, '') AS note,
        COALESCE(job.attempted, 0) AS attempted
    FROM message LEFT JOIN job ON job.queue = :queue AND job.id = message.message_id
    WHERE message_id = :message_id AND {OWN}
"""
CHANGES = """
    SELECT status, changed_at, detail FROM message_change WHERE message_id = :message_id ORDER BY changed_at, rank
"""

# Events arrive late and out of order: a rank never falls. The provider's first id stays; where a message was sent twice
# after all, both attempts lead here.
ADVANCE = """
    UPDATE message SET status = :status, rank = :rank, failure_reason = :reason, updated_at = now_ms()
    WHERE message_id = :message_id AND rank < :rank
    RETURNING updated_at
"""
# Never before the step before it: a provider's clock may be behind ours, and counts whole seconds.
CHANGE = """
    INSERT INTO message_change (message_id, status, rank, changed_at, detail)
    SELECT :message_id, :status, :rank, MAX(step_at), :detail FROM (
        SELECT CAST(:changed_at AS BIGINT) AS step_at
        UNION ALL SELECT created_at FROM message WHERE message_id = :message_id
        UNION ALL SELECT changed_at FROM message_change WHERE message_id = :message_id) AS steps
    WHERE true
    ON CONFLICT (message_id, status) DO NOTHING
"""
GIVE_UP_FINDING_OUT = f"""
    UPDATE message SET failure_reason = 'OUTCOME_UNKNOWN', updated_at = now_ms()
    WHERE message_id = :message_id AND rank <= {RANKS["UNKNOWN"]}
"""
UNKNOWN_SINCE = """
    UPDATE message SET outcome_unknown_since = COALESCE(outcome_unknown_since, now_ms()) WHERE message_id = :message_id
    RETURNING now_ms() - outcome_unknown_since AS waited
"""
KNOWN_AGAIN = "UPDATE message SET outcome_unknown_since = NULL WHERE message_id = :message_id"

ATTEMPT = """
    INSERT INTO message_attempt (message_id, number, provider, attempted_at)
    VALUES (:message_id, :number, :provider, now_ms())
    ON CONFLICT (message_id, number) DO UPDATE SET attempted_at = now_ms()
"""
# An id that another attempt has stays there: a message with the same words may have taken it for its own.
TAKEN = """
    INSERT INTO message_attempt (message_id, number, provider, provider_message_id, attempted_at, outcome)
    SELECT :message_id, :number, :provider, :provider_message_id, now_ms(), 'SENT' WHERE NOT EXISTS (
        SELECT 1 FROM message_attempt
        WHERE provider = :provider AND provider_message_id = :provider_message_id AND provider_message_id <> '')
    ON CONFLICT (message_id, number) DO UPDATE
        SET provider_message_id = excluded.provider_message_id, outcome = excluded.outcome
        WHERE message_attempt.provider_message_id = ''
    RETURNING message_id
"""
REFUSED = """
    UPDATE message_attempt SET outcome = 'REFUSED', detail = :detail
    WHERE message_id = :message_id AND number = :number
"""
SENT_BY = """
    UPDATE message SET provider = :provider, updated_at = now_ms(),
        provider_message_id = CASE WHEN provider_message_id = '' THEN :provider_message_id ELSE provider_message_id END,
        segments = CASE WHEN CAST(:segments AS BIGINT) > 0 THEN CAST(:segments AS BIGINT) ELSE segments END
    WHERE message_id = :message_id
"""
# The `<> ''` stands verbatim because a partial index is used only then.
BY_PROVIDER_ID = """
    SELECT message_id, number FROM message_attempt
    WHERE provider = :provider AND provider_message_id = :provider_message_id AND provider_message_id <> ''
"""
EXISTS = "SELECT message_id FROM message WHERE message_id = :message_id"
LATEST_ATTEMPT = """
    SELECT COALESCE(MAX(number), 0) AS number FROM message_attempt
    WHERE message_id = :message_id AND provider_message_id = ''
"""

OWN_ONE = f"SELECT message_id FROM message WHERE message_id = :message_id AND {OWN}"
OF_APPOINTMENT = f"""
    SELECT message_id FROM message
    WHERE appointment_id = :appointment_id AND appointment_id <> '' AND template IN ('{CONFIRMATION}', '{REMINDER}')
        AND {OWN}
    ORDER BY message_id
"""
# A dead letter keeps its words while a replay could still send them.
FORGET_WORDS = """
    UPDATE job SET payload = :nothing WHERE queue = :queue AND id = :id
        AND EXISTS (SELECT 1 FROM message WHERE message_id = :id AND expires_at <= now_ms())
"""

YOUNG = """
    SELECT CASE WHEN CAST(:received_at AS BIGINT) BETWEEN now_ms() - CAST(:settled AS BIGINT)
        AND now_ms() + CAST(:settled AS BIGINT) THEN 1 ELSE 0 END AS young
"""
NEW_EVENT = """
    INSERT INTO provider_event (provider, event_id, applied_at) VALUES (:provider, :event_id, now_ms())
    ON CONFLICT (provider, event_id) DO NOTHING RETURNING event_id
"""

# A message whose job may still run, or be replayed, keeps its key.
PURGE = """
    DELETE FROM message WHERE message_id IN (
        SELECT message_id FROM message WHERE updated_at < now_ms() - :age AND NOT EXISTS (
            SELECT 1 FROM job WHERE queue = :queue AND id = message_id AND state NOT IN ('done', 'cancelled'))
        ORDER BY updated_at LIMIT :max_rows)
    RETURNING message_id
"""
PURGE_CHANGES = "DELETE FROM message_change WHERE message_id = :message_id RETURNING message_id"
PURGE_ATTEMPTS = "DELETE FROM message_attempt WHERE message_id = :message_id RETURNING message_id"
PURGE_APPOINTMENTS = """
    DELETE FROM appointment WHERE (caller, appointment_id) IN (
        SELECT caller, appointment_id FROM appointment WHERE updated_at < now_ms() - :age
        ORDER BY updated_at LIMIT :max_rows)
    RETURNING appointment_id
"""
PURGE_EVENTS = """
    DELETE FROM provider_event WHERE (provider, event_id) IN (
        SELECT provider, event_id FROM provider_event WHERE applied_at < now_ms() - :age
        ORDER BY applied_at LIMIT :max_rows)
    RETURNING event_id
"""


class Due(NamedTuple):
    """When a message may be handed over, and why that is later than requested."""

    at: int
    reason: str = ""


@dataclass(frozen=True)
class Call:
    """What accepting a message needs of its RPC: whatever a transaction may not make up itself."""

    message_id: str
    caller: str
    fingerprint: Fingerprint
    trace: str


class Store:
    """
    The transactions of one channel. `prefix` begins the ids of its messages.

    `due_at(message, requested, now)` returns when the channel allows a message to go, such as after quiet hours.
    """

    def __init__(self, queue: str, prefix: str, due_at: Callable[[NewMessage, int, int], Due] | None = None) -> None:
        self.queue = queue
        self.prefix = prefix
        self._due_at = due_at

    async def accept(self, call: Call, message: NewMessage) -> MessageRecord:
        """Store a message and its job, or find what the same key stored before."""
        due = await self._due(message)
        status = "QUEUED" if due is None else "SCHEDULED"
        row = await maybe_one(
            INSERT, message_id=call.message_id, caller=call.caller, key=message.idempotency_key,
            fingerprint=call.fingerprint.stored, template=message.template, recipient=message.recipient,
            recipient_name=message.recipient_name, appointment_id=message.appointment_id, encoding=message.encoding,
            segments=message.segments, revision=await _revision(call, message),
            status=status, rank=RANKS[status], due_at=due.at if due else None,
            waiting_reason=due.reason if due else "", lifetime=message.lifetime,
            expires_at=milliseconds(message.schedule.expires_at) if message.schedule.expires_at else None,
        )  # fmt: skip
        if row is None:
            before = await one(BY_KEY, caller=call.caller, key=message.idempotency_key)
            call.fingerprint.check(before["fingerprint"])
            return await self.get(before["message_id"], call.caller)
        scheduled_at, expires_at, now = row["scheduled_at"], row["expires_at"], row["created_at"]
        if message.schedule.over_at is not None and milliseconds(message.schedule.over_at) <= now:
            raise InvalidRequest([Rule.APPOINTMENT_OVER.at("appointment.start_time")])
        await jobs.add(
            self.queue, call.message_id, message.payload, priority=message.priority, trace=call.trace,
            due_at=due.at if due else None, expires_at=expires_at,
        )  # fmt: skip
        return MessageRecord(
            call.message_id, message.template, message.recipient, message.recipient_name, message.appointment_id,
            message.encoding, message.segments, status, RANKS[status], scheduled_at, expires_at, now, now, now,
            waiting=Waiting(due.reason, due.at) if due and due.reason else Waiting(),
        )  # fmt: skip

    async def _due(self, message: NewMessage) -> Due | None:
        """Return when a message may go; None is at once."""
        if message.schedule.send_at is None and message.priority != jobs.REMINDERS:
            return None
        now: int = (await one("SELECT now_ms() AS now"))["now"]
        requested = max(now, milliseconds(message.schedule.send_at)) if message.schedule.send_at else now
        due = self._due_at(message, requested, now) if self._due_at else Due(requested)
        return due if due.at > now else None

    async def get(self, message_id: str, caller: str | None = None) -> MessageRecord:
        """Return a message; NotFound where it is another caller's. `caller` None sees all."""
        row = await maybe_one(GET, message_id=message_id, caller=caller, queue=self.queue)
        if row is None:
            raise NotFound("no such message of this caller")
        changes = await rows(CHANGES, message_id=message_id)
        record = MessageRecord(**row, changes=tuple([Change(**change) for change in changes]))
        return replace(record, waiting=record.held)

    async def cancel(self, message_id: str, caller: str | None) -> tuple[int, int]:
        """Count (canceled, too late) for one message."""
        if await maybe_one(OWN_ONE, message_id=message_id, caller=caller) is None:
            raise NotFound("no such message of this caller")
        return await self._cancel([message_id])

    async def cancel_appointment(self, appointment_id: str, caller: str | None) -> tuple[int, int]:
        found = await rows(OF_APPOINTMENT, appointment_id=appointment_id, caller=caller)
        return await self._cancel([row["message_id"] for row in found])

    async def _cancel(self, message_ids: Sequence[str]) -> tuple[int, int]:
        canceled = too_late = 0
        for message_id in message_ids:
            if await jobs.cancel(self.queue, message_id):
                canceled += await advance(message_id, "CANCELED")
            else:
                too_late += (await self.get(message_id)).status not in ENDED
        return canceled, too_late

    async def given_up(self, job: jobs.Job, reason: str) -> None:
        """Its job is dead. Whether it was sent may never be known; a late event still tells."""
        if job.outcome_unknown:
            await undecided(job.id)
        else:
            await not_sent(job.id, "EXPIRED", reason)
        await rows(FORGET_WORDS, queue=self.queue, id=job.id, nothing=b"")

    async def refuse_replay(self, job: Row) -> str:
        """Say why a dead letter must not be sent: it is of no more use, or its words are erased."""
        row = await maybe_one(GET, message_id=job["id"], caller=None, queue=self.queue)
        if row is None or row["expires_at"] <= row["now"]:
            return "EXPIRED"
        return "" if job["payload_bytes"] else "CONTENT_ERASED"

    async def purge(self) -> int:
        """Delete a small batch of what is past its retention; return the number of rows."""
        found = await rows(PURGE, queue=self.queue, age=RETENTION, max_rows=MAX_PURGED)
        deleted = len(found)
        for row in found:
            for sql in (PURGE_CHANGES, PURGE_ATTEMPTS):
                deleted += len(await rows(sql, message_id=row["message_id"]))
        for sql in (PURGE_APPOINTMENTS, PURGE_EVENTS):
            deleted += len(await rows(sql, age=RETENTION, max_rows=MAX_PURGED))
        return deleted


async def _revision(call: Call, message: NewMessage) -> int:
    """Number this calendar entry of its appointment beyond all before; a repeated key wastes a number."""
    if not message.revises:
        return 0
    revised = await one(REVISE, caller=call.caller, appointment_id=message.appointment_id)
    revision: int = revised["revision"]
    return revision


async def advance(
    message_id: str,
    status: str,
    reason: str = "",
    *,
    detail: str = "",
    changed_at: int | None = None,
    event: bool = False,
) -> bool:
    """Move a message forward; False if it has been there before or is further. `event`: a provider reports it."""
    rank = EVENT_RANKS[status] if event else RANKS[status]
    moved = await maybe_one(ADVANCE, message_id=message_id, status=status, rank=rank, reason=reason)
    if moved is None:
        return False
    now: int = moved["updated_at"]
    await rows(
        CHANGE, message_id=message_id, status=status, rank=rank, detail=detail,
        changed_at=now if changed_at is None else min(changed_at, now),
    )  # fmt: skip
    return True


async def attempted(message_id: str, number: int, provider: str) -> None:
    """Note an attempt just before the request leaves, in the transaction that marks its job."""
    await rows(ATTEMPT, message_id=message_id, number=number, provider=provider)


async def taken(message_id: str, number: int, provider: str, receipt: Receipt) -> bool:
    """Note the provider's id of an attempt; False if it was known, or is another's."""
    if not receipt.provider_message_id:
        return False
    id = receipt.provider_message_id
    found = await maybe_one(
        TAKEN, message_id=message_id, number=number, provider=provider, provider_message_id=id
    )  # fmt: skip
    if found is not None or receipt.segments:
        await rows(
            SENT_BY, message_id=message_id, provider=provider, provider_message_id=id if found else "",
            segments=receipt.segments,
        )  # fmt: skip
    return found is not None


async def sent(message_id: str, number: int, provider: str, receipt: Receipt) -> None:
    """The provider has taken it. An event may have told that before, so each part stands for itself."""
    if not receipt.provider_message_id:
        await rows(SENT_BY, message_id=message_id, provider=provider, provider_message_id="", segments=receipt.segments)
    await taken(message_id, number, provider, receipt)
    await advance(message_id, "SENT")


async def refused(message_id: str, number: int, status: str, reason: str, detail: str) -> None:
    """The provider said no, for good."""
    await rows(REFUSED, message_id=message_id, number=number, detail=detail)
    await advance(message_id, status, reason, detail=detail)


async def latest_attempt(message_id: str) -> int:
    """Return the number of the last attempt without a provider's id; 0 where there is none."""
    number: int = (await one(LATEST_ATTEMPT, message_id=message_id))["number"]
    return number


async def outcome_unknown(message_id: str) -> int:
    """Note that an answer was lost; return for how many milliseconds that has been known."""
    await advance(message_id, "UNKNOWN")
    waited: int = (await one(UNKNOWN_SINCE, message_id=message_id))["waited"]
    return waited


async def not_taken(message_id: str) -> None:
    """The provider never took it. The next lost answer is waited for anew."""
    await rows(KNOWN_AGAIN, message_id=message_id)


async def undecided(message_id: str) -> None:
    """It is not tried again, and nobody knows whether it was taken; an event may still tell."""
    await advance(message_id, "UNKNOWN")
    await rows(GIVE_UP_FINDING_OUT, message_id=message_id)


async def not_sent(message_id: str, status: str, reason: str) -> None:
    """It ends here: EXPIRED or FAILED. `reason` is what its job noted last."""
    await advance(message_id, status, reason if not reason or reason in REASONS else "UNAVAILABLE")


async def unclaimed(provider: str, receipts: Sequence[Receipt]) -> Receipt | None:
    """Find the first receipt that no attempt is known to have."""
    for receipt in receipts:
        if await maybe_one(BY_PROVIDER_ID, provider=provider, provider_message_id=receipt.provider_message_id) is None:
            return receipt
    return None


async def apply(events: Sequence[StatusEvent]) -> list[common.EventOutcome.ValueType]:
    return [await _apply(event) for event in events]


async def _apply(event: StatusEvent) -> common.EventOutcome.ValueType:
    # The provider's id before the one in the event: it may have been adopted by a message with the same words.
    id = event.provider_message_id
    known = await maybe_one(BY_PROVIDER_ID, provider=event.provider, provider_message_id=id)
    found = known or (await maybe_one(EXISTS, message_id=event.message_id) if event.message_id else None)
    if found is None:
        # Of another installation with the same account; or faster than the commit that stores the provider's id.
        young = (
            (await one(YOUNG, received_at=event.received_at, settled=SETTLED))["young"] if not event.message_id else 0
        )
        return common.EVENT_OUTCOME_RETRY if young else common.EVENT_OUTCOME_IGNORED_FOREIGN
    if await maybe_one(NEW_EVENT, provider=event.provider, event_id=event.event_id) is None:
        return common.EVENT_OUTCOME_DUPLICATE
    message_id = found["message_id"]
    recorded = False
    if known is None:
        number = event.attempt or await latest_attempt(message_id)
        recorded = await taken(message_id, number, event.provider, Receipt(id))
    moved = await advance(
        message_id, event.status, event.failure_reason, detail=event.detail, changed_at=event.happened_at, event=True
    )
    if moved and event.failure_reason == CredentialsRefused.default_reason:
        await rate_limit.pause(event.provider, ACCOUNT_PAUSE, event.failure_reason)
    return common.EVENT_OUTCOME_APPLIED if moved or recorded else common.EVENT_OUTCOME_STALE


async def waiting(record: MessageRecord, provider: str) -> MessageRecord:
    """Add what a pause of the provider says about a message that waits for it."""
    if record.accepted or record.job_state != "queued" or record.attempted:
        return record
    state = await rate_limit.peek(provider)
    if state.paused_for > 0 and record.now + state.paused_for * 1000 > record.due_at:
        return replace(record, waiting=Waiting(state.reason, state.paused_until))
    return record
