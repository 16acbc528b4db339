"""
What is kept of emails, as transactions.

A status moves only to a higher rank. What SendGrid reports ranks above what we gave up: were a mail that we believed
lost delivered after all, that is what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis import jobs
from services.chassis.database import Row, maybe_one, one, rows
from services.chassis.errors import InvalidRequest, NotFound
from services.chassis.idempotency import Fingerprint
from services.chassis.jobs import Job
from services.chassis.violations import Rule
from services.email.message import CONFIRMATION, REMINDER, Message, milliseconds
from services.email.sendgrid_events import Fact
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2 as pb

MIGRATIONS = Path(__file__).with_name("migrations")
QUEUE = "sendgrid"
PROVIDER = "sendgrid"

RANKS = {
    "SCHEDULED": 10, "QUEUED": 20, "UNKNOWN": 30, "CANCELED": 40, "EXPIRED": 40, "FAILED": 40, "SENT": 50,
    "DEFERRED": 60, "DELIVERED": 70, "BOUNCED": 80, "DROPPED": 80, "SUPPRESSED": 80, "COMPLAINED": 90,
}  # fmt: skip
REASONS = {
    name.removeprefix("ERROR_REASON_") for name in common.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
}
ENDED = {"CANCELED", "EXPIRED", "FAILED", "BOUNCED", "DROPPED", "SUPPRESSED", "COMPLAINED"}

INSERT = """
    INSERT INTO email (email_id, caller, idempotency_key, fingerprint, template, subject, address, name, appointment_id,
        status, rank, scheduled_at, useless_at, created_at, updated_at)
    VALUES (:email_id, :caller, :key, :fingerprint, :template, :subject, :address, :name, :appointment_id,
        CASE WHEN CAST(:send_at AS BIGINT) > now_ms() THEN 'SCHEDULED' ELSE 'QUEUED' END,
        CASE WHEN CAST(:send_at AS BIGINT) > now_ms() THEN 10 ELSE 20 END,
        CASE WHEN CAST(:send_at AS BIGINT) > now_ms() THEN CAST(:send_at AS BIGINT) ELSE now_ms() END,
        CAST(:useless_at AS BIGINT), now_ms(), now_ms())
    ON CONFLICT (caller, idempotency_key) DO NOTHING
    RETURNING email_id, template, subject, address, name, appointment_id, provider, provider_message_id,
        failure_reason, scheduled_at, created_at, updated_at, status
"""
BY_KEY = "SELECT email_id, fingerprint FROM email WHERE caller = :caller AND idempotency_key = :key"

# What its job is doing is not stored a second time: it is what a job makes of a QUEUED email.
SHOW = """
    SELECT email.email_id, template, subject, address, name, appointment_id, provider, provider_message_id,
        failure_reason, scheduled_at, email.created_at, updated_at,
        CASE WHEN rank > 20 THEN status
            WHEN job.state = 'running' THEN 'SENDING'
            WHEN job.attempted = 1 THEN 'UNKNOWN'
            WHEN scheduled_at > now_ms() THEN 'SCHEDULED'
            ELSE 'QUEUED' END AS status
    FROM email LEFT JOIN job ON job.queue = :queue AND job.id = email.email_id
    WHERE email.email_id = :email_id
"""
CHANGES = "SELECT status, changed_at, detail FROM email_change WHERE email_id = :email_id ORDER BY number"

STANDING = """
    SELECT template, rank, job.note, COALESCE(now_ms() - doubted_at, -1) AS doubted_ms,
        CASE WHEN useless_at <= now_ms() THEN 1 ELSE 0 END AS useless
    FROM email JOIN job ON job.queue = :queue AND job.id = email.email_id WHERE email.email_id = :email_id
"""
DOUBT = "UPDATE email SET doubted_at = now_ms() WHERE email_id = :email_id"

ADVANCE = """
    UPDATE email SET status = :status, rank = :rank, updated_at = now_ms(), failure_reason = :failure_reason,
        provider = CASE WHEN :provider = '' THEN provider ELSE :provider END,
        provider_message_id = CASE WHEN :message_id = '' THEN provider_message_id ELSE :message_id END
    WHERE email_id = :email_id AND rank < :rank
    RETURNING updated_at
"""
GIVE_UP_FINDING_OUT = """
    UPDATE email SET failure_reason = 'OUTCOME_UNKNOWN', updated_at = now_ms() WHERE email_id = :email_id AND rank <= 30
"""
# The email's row is locked by the statement before this one, so no two get the same number.
CHANGE = """
    INSERT INTO email_change (email_id, number, status, changed_at, detail)
    SELECT :email_id, COALESCE(MAX(number), 0) + 1, :status, :changed_at, :detail
    FROM email_change WHERE email_id = :email_id
"""

OF_APPOINTMENT = """
    SELECT email_id, status FROM email
    WHERE appointment_id = :appointment_id AND template IN (:confirmation, :reminder) ORDER BY email_id
"""
ONE_OF_ANY_KIND = "SELECT email_id, status FROM email WHERE email_id = :email_id"

KNOWN = "SELECT email_id FROM email WHERE email_id = :email_id"
DEDUPLICATE = """
    INSERT INTO email_event (event_id, email_id, status, applied_at) VALUES (:event_id, :email_id, :status, now_ms())
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id
"""


@dataclass(frozen=True)
class Standing:
    """What a hand-over has to know first. `doubted_for`: seconds since an answer was lost; None: none was."""

    template: str
    accepted: bool
    useless: bool
    last_trouble: str
    doubted_for: float | None


async def accept(email_id: str, caller: str, message: Message, fingerprint: Fingerprint, trace: str) -> pb.Email:
    """Store an email and its job, or find what the same key stored before."""
    row = await maybe_one(
        INSERT, email_id=email_id, caller=caller, key=message.key, fingerprint=fingerprint.stored,
        template=message.template,
        subject=message.subject, address=message.recipient.address, name=message.recipient.name,
        appointment_id=message.about.appointment_id,
        send_at=None if message.send_at is None else milliseconds(message.send_at),
        useless_at=None if message.useless_at is None else milliseconds(message.useless_at),
    )  # fmt: skip
    if row is None:
        before = await one(BY_KEY, caller=caller, key=message.key)
        fingerprint.check(before["fingerprint"])
        return await find(before["email_id"])
    if message.over_at is not None and milliseconds(message.over_at) <= row["created_at"]:
        raise InvalidRequest([Rule.APPOINTMENT_OVER.at("appointment.start_time")])
    accepted = {"status": row["status"], "changed_at": row["created_at"], "detail": ""}
    await rows(CHANGE, email_id=email_id, **accepted)
    await jobs.add(
        QUEUE, email_id, message.request.SerializeToString(),
        priority=jobs.REMINDERS if message.template == REMINDER else jobs.NOTICES,
        due_at=row["scheduled_at"], trace=trace,
        give_up_at=None if message.useless_at is None else milliseconds(message.useless_at),
    )  # fmt: skip
    return to_proto(row, [accepted])


async def find(email_id: str) -> pb.Email:
    row = await maybe_one(SHOW, email_id=email_id, queue=QUEUE)
    if row is None:
        raise NotFound("no such email")
    return to_proto(row, await rows(CHANGES, email_id=email_id))


async def standing(email_id: str) -> Standing:
    row = await one(STANDING, email_id=email_id, queue=QUEUE)
    return Standing(
        template=row["template"],
        accepted=row["rank"] >= RANKS["SENT"],
        useless=row["useless"] == 1,
        last_trouble=row["note"],
        doubted_for=None if row["doubted_ms"] < 0 else row["doubted_ms"] / 1000,
    )


async def doubt(email_id: str) -> None:
    """An answer is lost from now on."""
    await rows(DOUBT, email_id=email_id)
    await advance(email_id, "UNKNOWN")


async def undecided(email_id: str) -> None:
    """It will not be tried again, and nobody knows whether it was taken; an event may still tell."""
    await advance(email_id, "UNKNOWN")
    await rows(GIVE_UP_FINDING_OUT, email_id=email_id)


async def sent(email_id: str, provider_message_id: str) -> None:
    await advance(email_id, "SENT", message_id=provider_message_id, provider=PROVIDER)


async def not_sent(email_id: str, status: str, reason: str) -> None:
    """It ends here: EXPIRED or FAILED."""
    await advance(email_id, status, failure_reason=reason if not reason or reason in REASONS else "UNAVAILABLE")


async def on_dead(job: Job, reason: str) -> None:
    if job.unsure:
        await undecided(job.id)
    else:
        await not_sent(job.id, "EXPIRED", reason)


async def advance(
    email_id: str,
    status: str,
    *,
    message_id: str = "",
    provider: str = "",
    failure_reason: str = "",
    changed_at: int | None = None,
    detail: str = "",
) -> bool:
    """Move to a higher rank; False if it is there already, or further."""
    row = await maybe_one(
        ADVANCE, email_id=email_id, status=status, rank=RANKS[status], message_id=message_id, provider=provider,
        failure_reason=failure_reason,
    )  # fmt: skip
    if row is None:
        return False
    moment = row["updated_at"] if changed_at is None else changed_at
    await rows(CHANGE, email_id=email_id, status=status, changed_at=moment, detail=detail)
    return True


async def cancel(email_id: str, appointment_id: str) -> tuple[int, int]:
    """Cancel one email or an appointment's; returns how many were canceled and for how many it was too late."""
    if email_id:
        found = await rows(ONE_OF_ANY_KIND, email_id=email_id)
        if not found:
            raise NotFound("no such email")
    else:
        found = await rows(OF_APPOINTMENT, appointment_id=appointment_id, confirmation=CONFIRMATION, reminder=REMINDER)
    canceled = too_late = 0
    for row in found:
        # The job first, as whoever finishes one takes them in this order too.
        if await jobs.cancel(QUEUE, row["email_id"]):
            canceled += await advance(row["email_id"], "CANCELED")
        elif row["status"] not in ENDED:
            too_late += 1
    return canceled, too_late


async def apply(facts: Sequence[Fact]) -> list[common.EventOutcome.ValueType]:
    return [await apply_one(fact) for fact in facts]


async def apply_one(fact: Fact) -> common.EventOutcome.ValueType:
    if await maybe_one(KNOWN, email_id=fact.email_id) is None:
        return common.EVENT_OUTCOME_IGNORED_FOREIGN  # of another installation on the same account
    if await maybe_one(DEDUPLICATE, event_id=fact.event_id, email_id=fact.email_id, status=fact.status) is None:
        return common.EVENT_OUTCOME_DUPLICATE
    moved = await advance(
        fact.email_id, fact.status, message_id=fact.provider_message_id, provider=PROVIDER,
        failure_reason=fact.failure_reason, changed_at=fact.happened_at, detail=fact.detail,
    )  # fmt: skip
    return common.EVENT_OUTCOME_APPLIED if moved else common.EVENT_OUTCOME_STALE


def to_proto(row: Row, changes: Sequence[Row]) -> pb.Email:
    email = pb.Email(
        email_id=row["email_id"], status=status_of(row), subject=row["subject"], template=row["template"],
        recipient=pb.Recipient(address=row["address"], name=row["name"]), appointment_id=row["appointment_id"],
        provider=row["provider"], provider_message_id=row["provider_message_id"], failure_reason=row["failure_reason"],
    )  # fmt: skip
    email.scheduled_time.FromMilliseconds(row["scheduled_at"])
    email.create_time.FromMilliseconds(row["created_at"])
    email.update_time.FromMilliseconds(row["updated_at"])
    for change in changes:
        step = email.history.add(status=status_of(change), detail=change["detail"])
        step.change_time.FromMilliseconds(change["changed_at"])
    return email


def status_of(row: Row) -> common.MessageStatus.ValueType:
    return common.MessageStatus.Value(f"MESSAGE_STATUS_{row['status']}")
