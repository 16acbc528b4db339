"""
Texts and what became of them: transactions only.

A job's row is locked before its sms's, by everybody: the worker that stores an outcome, and whoever cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis import jobs, pace
from services.chassis.database import maybe_one, one, rows
from services.chassis.errors import CredentialsRefused, InvalidRequest, NotFound
from services.chassis.idempotency import Fingerprint
from services.chassis.violations import Rule
from services.sms.message import CODE, CODE_USEFUL_MS, CONFIRMATION, REMINDER, Message, milliseconds, moment_of
from services.sms.provider import Receipt
from services.sms.quiet_hours import QuietHours
from services.sms.record import NOT_SENT, RANKS, REASONS, Change, Sms
from services.sms.segments import size
from services.sms.twilio_events import StatusEvent

QUEUE = "twilio"
#: Seconds until the next text is tried after one that Twilio took was refused for our account's sake. Longer than for
#: credentials that are refused at once: each trial may cost a text.
ACCOUNT_PAUSE = 600.0
#: FAILED after all, though it was SENT.
EVENT_RANKS = {"FAILED": 65}

INSERT = """
    INSERT INTO sms (sms_id, caller, idempotency_key, fingerprint, template, recipient, appointment_id, encoding,
        segments, status, rank, scheduled_at, created_at, updated_at)
    VALUES (:sms_id, :caller, :key, :fingerprint, :template, :recipient, :appointment_id, :encoding,
        :segments, :status, :rank, COALESCE(CAST(:due_at AS BIGINT), now_ms()), now_ms(), now_ms())
    ON CONFLICT (caller, idempotency_key) DO NOTHING
    RETURNING scheduled_at, created_at
"""
SAME_KEY = "SELECT sms_id, fingerprint FROM sms WHERE caller = :caller AND idempotency_key = :key"

# What its job is doing tells more than what was stored last.
GET = f"""
    SELECT sms.sms_id, sms.recipient, sms.template, sms.segments, sms.encoding, sms.appointment_id, sms.provider,
        sms.provider_message_id, sms.failure_reason, sms.scheduled_at, sms.created_at, sms.updated_at, now_ms() AS now,
        COALESCE(job.note, '') AS trouble,
        CASE WHEN sms.rank < {RANKS["UNKNOWN"]} AND job.state = 'queued' AND job.attempted = 1 THEN 'UNKNOWN'
            WHEN sms.rank < {RANKS["SENDING"]} AND job.state = 'running' THEN 'SENDING'
            WHEN sms.status = 'SCHEDULED' AND job.due_at <= now_ms() THEN 'QUEUED'
            ELSE sms.status END AS status
    FROM sms LEFT JOIN job ON job.queue = '{QUEUE}' AND job.id = sms.sms_id
    WHERE sms.sms_id = :sms_id
"""
CHANGES = "SELECT status, changed_at, detail FROM sms_change WHERE sms_id = :sms_id ORDER BY changed_at, rank"

# Callbacks arrive late and out of order: a rank never falls.
ADVANCE = """
    UPDATE sms SET status = :status, rank = :rank, failure_reason = :reason, updated_at = now_ms()
    WHERE sms_id = :sms_id AND rank < :rank
    RETURNING sms_id
"""
REMEMBER = """
    INSERT INTO sms_change (sms_id, status, rank, detail, changed_at)
    VALUES (:sms_id, :status, :rank, :detail, now_ms())
    ON CONFLICT (sms_id, status) DO NOTHING
"""
# The first id stays: where a text was sent twice after all, both lead here by their callback's URL. And it stays where
# it is: a text with the same words, whose own answer was lost, may have taken this one for its own.
LEARN = """
    UPDATE sms SET provider = 'twilio', provider_message_id = :sid, updated_at = now_ms()
    WHERE sms_id = :sms_id AND provider_message_id = ''
        AND NOT EXISTS (SELECT 1 FROM sms WHERE provider_message_id = :sid AND provider_message_id <> '')
    RETURNING sms_id
"""
COUNT_SEGMENTS = "UPDATE sms SET segments = :segments WHERE sms_id = :sms_id"

# The `<> ''` stands verbatim because a partial index is used only then.
KNOWN = "SELECT sms_id FROM sms WHERE provider_message_id = :sid AND provider_message_id <> ''"
EXISTS = "SELECT sms_id FROM sms WHERE sms_id = :sms_id"
OF_APPOINTMENT = f"""
    SELECT sms_id FROM sms
    WHERE appointment_id = :appointment_id AND appointment_id <> '' AND template IN ('{CONFIRMATION}', '{REMINDER}')
    ORDER BY sms_id
"""
UNSURE = """
    UPDATE sms SET unsure_since = COALESCE(unsure_since, now_ms()) WHERE sms_id = :sms_id
    RETURNING now_ms() - unsure_since AS waited
"""
SURE = "UPDATE sms SET unsure_since = NULL WHERE sms_id = :sms_id"
FORGET_WORDS = f"UPDATE job SET payload = :nothing WHERE queue = '{QUEUE}' AND id = :sms_id"
NEW_EVENT = """
    INSERT INTO event (event_id, applied_at) VALUES (:event_id, now_ms()) ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id
"""


@dataclass(frozen=True)
class NewSms:
    """What accepting a text needs besides the message: whatever a transaction may not make up itself."""

    sms_id: str
    caller: str
    fingerprint: Fingerprint
    payload: bytes
    trace: str
    quiet_hours: QuietHours


async def accept(new: NewSms, message: Message) -> Sms:
    """Store a text and its job, or find what the same key stored before."""
    due_at = await _due_at(message, new.quiet_hours)
    encoding, segments = size(message.text)
    status = "QUEUED" if due_at is None else "SCHEDULED"
    row = await maybe_one(
        INSERT, sms_id=new.sms_id, caller=new.caller, key=message.key, fingerprint=new.fingerprint.stored,
        template=message.template, recipient=message.recipient, appointment_id=message.appointment_id,
        encoding=encoding, segments=segments, status=status, rank=RANKS[status], due_at=due_at,
    )  # fmt: skip
    if row is None:
        before = await one(SAME_KEY, caller=new.caller, key=message.key)
        new.fingerprint.check(before["fingerprint"])
        return await get(before["sms_id"])
    scheduled_at, now = row["scheduled_at"], row["created_at"]
    if message.over_at is not None and milliseconds(message.over_at) <= now:
        raise InvalidRequest([Rule.APPOINTMENT_OVER.at("appointment.start_time")])
    give_up_at = milliseconds(message.useless_at) if message.useless_at else None
    await jobs.add(
        QUEUE, new.sms_id, new.payload, priority=message.priority, due_at=due_at, trace=new.trace,
        give_up_at=now + CODE_USEFUL_MS if message.template == CODE else give_up_at,
    )  # fmt: skip
    return Sms(
        new.sms_id, status, message.recipient, message.template, segments, encoding, message.appointment_id,
        scheduled_at=scheduled_at, created_at=now, updated_at=now, now=now,
    )  # fmt: skip


async def _due_at(message: Message, quiet_hours: QuietHours) -> int | None:
    """When a text may go; None is at once."""
    if message.send_at is None and message.template != REMINDER:
        return None
    now: int = (await one("SELECT now_ms() AS now"))["now"]
    due_at = max(now, milliseconds(message.send_at)) if message.send_at else now
    if message.template == REMINDER and message.useless_at:
        allowed_at = quiet_hours.allowed_at(
            moment_of(due_at), now=moment_of(now), recipient=message.recipient, start_at=message.useless_at
        )
        due_at = milliseconds(allowed_at)
    return due_at if due_at > now else None


async def get(sms_id: str) -> Sms:
    row = await maybe_one(GET, sms_id=sms_id)
    if row is None:
        raise NotFound("no such sms")
    return Sms(**row, changes=tuple([Change(**change) for change in await rows(CHANGES, sms_id=sms_id)]))


async def advance(sms_id: str, status: str, reason: str = "", detail: str = "", *, rank: int | None = None) -> bool:
    """Move a text forward; False if it has been there before or is further."""
    moved = await maybe_one(ADVANCE, sms_id=sms_id, status=status, rank=rank or RANKS[status], reason=reason)
    if moved is not None:
        await rows(REMEMBER, sms_id=sms_id, status=status, rank=RANKS[status], detail=detail)
    return moved is not None


async def sent(sms_id: str, receipt: Receipt) -> None:
    """A callback may have been faster, so each part stands for itself."""
    await maybe_one(LEARN, sms_id=sms_id, sid=receipt.provider_message_id)
    if receipt.segments:
        await rows(COUNT_SEGMENTS, sms_id=sms_id, segments=receipt.segments)
    await advance(sms_id, "SENT")


async def unsure(sms_id: str) -> int:
    """Note that an answer was lost; returns for how many milliseconds that has been known."""
    await advance(sms_id, "UNKNOWN", "OUTCOME_UNKNOWN")
    waited: int = (await one(UNSURE, sms_id=sms_id))["waited"]
    return waited


async def not_accepted(sms_id: str) -> None:
    """Be sure again: the provider never took it. The next lost answer is waited for anew."""
    await rows(SURE, sms_id=sms_id)


async def unknown_to_us(receipts: Sequence[Receipt]) -> Receipt | None:
    """Find the first that no other text of ours is known to be."""
    for receipt in receipts:
        if await maybe_one(KNOWN, sid=receipt.provider_message_id) is None:
            return receipt
    return None


async def expired(sms_id: str, trouble: str = "") -> None:
    """It could not be handed over while it was of use; `trouble` is what its job noted."""
    await advance(sms_id, "EXPIRED", trouble if not trouble or trouble in REASONS else "UNAVAILABLE")


async def given_up(job: jobs.Job, reason: str) -> None:
    """Its job is dead. Whether it was sent may never be known; a late callback still tells."""
    if job.unsure:
        await advance(job.id, "UNKNOWN", "OUTCOME_UNKNOWN")
    else:
        await expired(job.id, reason)
    await rows(FORGET_WORDS, sms_id=job.id, nothing=b"")


async def cancel(sms_id: str) -> tuple[int, int]:
    """Count (canceled, too late) for one text."""
    if await maybe_one(EXISTS, sms_id=sms_id) is None:
        raise NotFound("no such sms")
    return await _cancel([sms_id])


async def cancel_appointment(appointment_id: str) -> tuple[int, int]:
    return await _cancel([row["sms_id"] for row in await rows(OF_APPOINTMENT, appointment_id=appointment_id)])


async def _cancel(sms_ids: Sequence[str]) -> tuple[int, int]:
    canceled = too_late = 0
    for sms_id in sms_ids:
        if await jobs.cancel(QUEUE, sms_id):
            canceled += await advance(sms_id, "CANCELED")
        else:
            too_late += (await get(sms_id)).status not in NOT_SENT
    return canceled, too_late


async def apply(events: Sequence[StatusEvent]) -> list[tuple[str, str]]:
    """Learn from callbacks; an outcome and a reason for each."""
    return [await _apply(event) for event in events]


async def _apply(event: StatusEvent) -> tuple[str, str]:
    if await maybe_one(NEW_EVENT, event_id=event.event_id) is None:
        return "DUPLICATE", ""
    sid = event.provider_message_id
    # The id before the URL: it may have been adopted from Twilio's list by a text with the same words.
    found = await maybe_one(KNOWN, sid=sid) or await maybe_one(EXISTS, sms_id=event.sms_id)
    if found is None or not event.status:
        return "IGNORED_FOREIGN", "no text of ours" if event.status else "nothing here depends on this status"
    sms_id = found["sms_id"]
    learnt = await maybe_one(LEARN, sms_id=sms_id, sid=sid) is not None
    moved = await advance(sms_id, event.status, event.failure_reason, event.detail, rank=EVENT_RANKS.get(event.status))
    if moved and event.failure_reason == CredentialsRefused.default_reason:
        await pace.pause(QUEUE, ACCOUNT_PAUSE, event.failure_reason)
    return ("APPLIED", "") if moved or learnt else ("STALE", "")
