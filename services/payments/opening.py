"""The transactions that open a payment or begin a reading for a waiting caller."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.database.transactions import maybe_one, one
from services.chassis.errors import AlreadyExists, InProgress, Rejected
from services.chassis.queue import jobs, operations
from services.chassis.queue.jobs import Job, Queue
from services.chassis.queue.rate_limit import acquire
from services.chassis.rpc.idempotency import Fingerprint
from services.payments import change_log
from services.payments.status import FINAL
from services.payments.store import COLUMNS, JOB_LIFETIME, Stored, find
from topsmile.payments.v1 import payments_pb2 as pb

#: Milliseconds during which a reading is fresh enough to refuse a second payment, and to answer RefreshPayment.
FRESH_FOR, REFRESHED_FOR = 30_000, 2_000
BY_KEY = f"SELECT {COLUMNS} FROM payment WHERE caller = :caller AND idempotency_key = :idempotency_key"
# Exclude the same key: a call with it may have committed after BY_KEY ran, and then the INSERT finds the conflict.
BLOCKING = f"""
    SELECT payment_id, status FROM payment
    WHERE caller = :caller AND appointment_id = :appointment_id AND (rank < {FINAL} OR status = 'SUCCEEDED')
        AND idempotency_key <> :idempotency_key
    ORDER BY rank DESC LIMIT 1
"""
# The unique indexes decide between two concurrent calls: one payment per key, one sole open payment per appointment.
INSERT = """
    INSERT INTO payment (payment_id, caller, idempotency_key, fingerprint, appointment_id, patient_id, sole, confirmed,
        status, rank, record, created_at)
    VALUES (:payment_id, :caller, :idempotency_key, :fingerprint, :appointment_id, :patient_id, :sole, :confirmed,
        'CREATING', 0, :record, :created_at)
    ON CONFLICT DO NOTHING
    RETURNING payment_id
"""
CLAIM_READING = """
    UPDATE payment SET read_at = now_ms()
    WHERE payment_id = :payment_id AND read_at <= now_ms() - :fresh_for AND intent_id <> '' AND status <> 'SUCCEEDED'
    RETURNING read_at
"""


@dataclass(frozen=True)
class NewPayment:
    """A payment to store. A transaction may run twice, so every random value is chosen before it."""

    record: pb.Payment
    caller: str
    idempotency_key: str
    fingerprint: Fingerprint
    allow_another: bool
    confirmed: bool
    prepared: bytes
    trace: str


@dataclass(frozen=True)
class Opened:
    """An open payment. Perform `job` now: it is claimed. None: there is nothing to do."""

    payment_id: str
    job: Job | None = None
    recovering: bool = False


async def open_payment(queue: Queue, new: NewPayment) -> Opened:
    """Store the payment and its job, claimed by the caller; or return the payment that its key made before."""
    known = await find(BY_KEY, caller=new.caller, idempotency_key=new.idempotency_key)
    if known is not None:
        return await _again(queue, known, new)
    recovering = await acquire(queue.name, queue.rate_limit)
    record, appointment_id = new.record, new.record.appointment_id
    now = (await one("SELECT now_ms() AS now"))["now"]
    record.create_time.FromMilliseconds(now)
    record.update_time.FromMilliseconds(now)
    if not new.allow_another:
        row = await maybe_one(
            BLOCKING, appointment_id=appointment_id, caller=new.caller, idempotency_key=new.idempotency_key
        )
        if row is not None:
            paid = row["status"] == "SUCCEEDED"
            raise AlreadyExists(
                f"the appointment has {'been paid' if paid else 'an open payment'}",
                reason="PAYMENT_ALREADY_PAID" if paid else "PAYMENT_OPEN",
                metadata={"payment_id": str(row["payment_id"])},
            )
    inserted = await maybe_one(
        INSERT, payment_id=record.payment_id, caller=new.caller, idempotency_key=new.idempotency_key,
        fingerprint=new.fingerprint.stored, appointment_id=appointment_id, patient_id=record.patient_id,
        created_at=now, sole=int(not new.allow_another),
        confirmed=int(new.confirmed), record=record.SerializeToString(),
    )  # fmt: skip
    if inserted is None:  # a concurrent call won, by this key or for this appointment
        raise InProgress("another call is opening this payment")
    expires_at = now + JOB_LIFETIME
    job = await jobs.add_claimed(queue, record.payment_id, new.prepared, expires_at=expires_at, trace=new.trace)
    await change_log.append(None, record)
    return Opened(record.payment_id, job, recovering)


async def _again(queue: Queue, known: Stored, new: NewPayment) -> Opened:
    """Repeat a key. Raise if the request differs, or InProgress while the first call is still running."""
    new.fingerprint.check(known.fingerprint)
    if known.settled:
        return Opened(known.payment_id)
    recovering = await acquire(queue.name, queue.rate_limit)
    await operations.replay(queue.name, known.payment_id)  # if it was dead
    job = await jobs.claim_one(queue, known.payment_id)
    if job is None:
        row = await operations.show(queue.name, known.payment_id)
        if row is not None and row["state"] == "cancelled":
            raise Rejected("an operator has discarded the job of this key", reason="DISCARDED")
        raise InProgress("the first call with this key is still running")
    return Opened(known.payment_id, job, recovering)


async def claim_reading(queue: Queue, payment_id: str) -> Opened:
    """Claim a reading for a waiting caller. No job: the last reading is fresh, or Stripe has no payment yet."""
    row = await maybe_one(CLAIM_READING, payment_id=payment_id, fresh_for=FRESH_FOR)
    if row is None:
        return Opened(payment_id)
    recovering = await acquire(queue.name, queue.rate_limit)
    job = await jobs.add_claimed(queue, f"{payment_id}/refresh/caller/{row['read_at']}", b"")
    return Opened(payment_id, job, recovering)


async def begin_refresh(queue: Queue, payment_id: str) -> bool:
    """Take a turn of the rate limit for a reading without a job. Return False if there is nothing newer to read."""
    row = await maybe_one(CLAIM_READING, payment_id=payment_id, fresh_for=REFRESHED_FOR)
    if row is not None:
        await acquire(queue.name, queue.rate_limit)
    return row is not None
