"""The rows of payments, and the transactions that read, save and schedule them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.errors import NotFound
from services.chassis.queue import jobs
from services.chassis.queue.jobs import Job
from services.payments import change_log
from services.payments.status import FINAL, add_alert, expires_at, is_paid, rank_of, status_of
from topsmile.payments.v1 import payments_pb2 as pb

QUEUE = "stripe"
MINUTE = 60_000
#: Milliseconds between two scheduled readings of an open payment: its age, within these bounds.
MIN_READ_INTERVAL, MAX_READ_INTERVAL = 5 * MINUTE, 360 * MINUTE
#: The jobs of a payment outlast every outage of its provider: nothing else closes the payment.
JOB_LIFETIME = 50_400 * MINUTE

COLUMNS = """payment_id, caller, fingerprint, intent_id, sole, confirmed, client_secret, rank, refusal, version,
        record, now_ms() AS now"""
GET = f"SELECT {COLUMNS} FROM payment WHERE payment_id = :payment_id"
BY_INTENT = f"SELECT {COLUMNS} FROM payment WHERE intent_id = :intent_id AND intent_id <> ''"
SAVE = """
    UPDATE payment SET intent_id = :intent_id, client_secret = :client_secret, status = :status, rank = :rank,
        refusal = :refusal, record = :record, version = version + 1
    WHERE payment_id = :payment_id
"""
ADD_ATTEMPT_TIME = "UPDATE payment SET attempts = attempts || ' ' || now_ms() / 1000 WHERE payment_id = :payment_id"
ATTEMPT_TIMES = "SELECT attempts FROM payment WHERE payment_id = :payment_id"
# One waiting refresh serves any number of reports. It stops waiting before its request to the provider.
REQUEST_REFRESH = """
    UPDATE payment SET refreshes = refreshes + 1, refresh_waiting = 1
    WHERE payment_id = :payment_id AND refresh_waiting = 0
    RETURNING refreshes
"""
BEGIN_READING = "UPDATE payment SET refresh_waiting = 0, read_at = now_ms() WHERE payment_id = :payment_id"
NO_REFRESH = "UPDATE payment SET refresh_waiting = 0 WHERE payment_id = :payment_id AND refresh_waiting = 1"
# Sole payments of one appointment exclude one another: at most one of them may be paid.
PAID_TOO = """
    SELECT payment_id FROM payment
    WHERE caller = :caller AND appointment_id = :appointment_id AND sole = 1 AND status = 'SUCCEEDED'
        AND payment_id <> :payment_id LIMIT 1
"""
OPEN_TOO = f"""
    SELECT payment_id FROM payment
    WHERE caller = :caller AND appointment_id = :appointment_id AND sole = 1 AND rank < {FINAL}
        AND payment_id <> :payment_id
"""


@dataclass(frozen=True)
class Stored:
    """A payment's row. `now` is the database's time of the read, in epoch milliseconds."""

    payment_id: str
    caller: str
    fingerprint: str
    intent_id: str
    sole: int
    confirmed: int
    client_secret: str
    rank: int
    refusal: str
    version: int
    record: pb.Payment
    now: int

    @property
    def settled(self) -> bool:
        """Return whether the creation has its outcome, success or refusal."""
        return self.refusal != "" or self.record.last_attempt == pb.ATTEMPT_OUTCOME_DONE

    def to_proto(self) -> pb.Payment:
        """Return the payment with its secret, unless the payer has a code or voucher, or it is closed unpaid."""
        payment = pb.Payment()
        payment.CopyFrom(self.record)
        closed = self.rank >= FINAL and not is_paid(payment)
        if not closed and not (self.confirmed and payment.WhichOneof("next_step")):
            payment.client_secret = self.client_secret
        return payment


async def find(sql: str, *, lock: bool = False, **parameters: object) -> Stored | None:
    row = await maybe_one(sql + (" FOR UPDATE" if lock else ""), **parameters)
    if row is None:
        return None
    values = {field.name: row[field.name] for field in fields(Stored)}
    return Stored(**{**values, "record": record_of(row)})


def record_of(row: Row) -> pb.Payment:
    record = pb.Payment.FromString(bytes(row["record"]))
    record.caller = row["caller"]
    return record


async def get(payment_id: str = "", intent_id: str = "", owner: str | None = None) -> Stored:
    """Return a payment by either id. Raise NotFound if there is none, or if `owner` is another caller."""
    found = await (find(GET, payment_id=payment_id) if payment_id else find(BY_INTENT, intent_id=intent_id))
    if found is None or owner not in (None, found.caller):
        raise NotFound("no such payment")
    return found


async def get_with_cursor(
    payment_id: str = "", intent_id: str = "", owner: str | None = None
) -> tuple[Stored, change_log.Cursor]:
    """Return a payment as `get` does, and a cursor for its later changes. Read the cursor first, to miss none."""
    cursor = await change_log.newest_cursor()
    return await get(payment_id, intent_id, owner), cursor


async def needs_method(intent_id: str, payment_id: str) -> bool:
    """Return whether either id is a payment that is not known as paid and whose method is open."""
    found = await find(BY_INTENT, intent_id=intent_id) or await find(GET, payment_id=payment_id)
    return found is not None and not found.confirmed and found.record.status != pb.PAYMENT_STATUS_SUCCEEDED


async def locked(payment_id: str) -> Stored:
    found = await find(GET, lock=True, payment_id=payment_id)
    if found is None:
        raise NotFound("no such payment")
    return found


async def store_attempt(payment_id: str, outcome: pb.AttemptOutcome.ValueType) -> None:
    """Store the outcome of an attempt without a response."""
    before = await locked(payment_id)
    if before.settled or before.record.last_attempt == outcome:
        return
    after = with_attempt(before.record, outcome)
    if outcome == pb.ATTEMPT_OUTCOME_UNKNOWN and before.rank == 0:
        after.status = pb.PAYMENT_STATUS_UNKNOWN
    await save(before, after)


async def add_attempt_time(payment_id: str) -> None:
    """Store the time of another attempt, before its request to the provider."""
    await rows(ADD_ATTEMPT_TIME, payment_id=payment_id)


async def attempt_times(payment_id: str) -> list[int]:
    """Return the epoch seconds stored by `add_attempt_time`."""
    return [int(second) for second in (await one(ATTEMPT_TIMES, payment_id=payment_id))["attempts"].split()]


async def request_refresh(payment_id: str, intent_id: str = "") -> None:
    """Add a job that reads the payment again. `intent_id`: the id from an event, if it is not stored yet."""
    row = await maybe_one(REQUEST_REFRESH, payment_id=payment_id)
    if row is not None:
        id = f"{payment_id}/refresh/{row['refreshes']}"
        await jobs.add(QUEUE, id, intent_id.encode(), priority=jobs.REMINDERS)


async def begin_reading(payment_id: str) -> tuple[Stored, bool]:
    """
    Return the payment, and whether its appointment is paid by another one, so that this one must not be paid.

    A report that arrives after this transaction requests another refresh: this reading may be older than the report.
    """
    await rows(BEGIN_READING, payment_id=payment_id)
    stored = await get(payment_id)
    return stored, stored.sole == 1 and await _excluded(PAID_TOO, stored) != []


async def schedule_reading(record: pb.Payment, now: int) -> None:
    """Schedule the next reading of an open payment: a webhook may be lost, and a payer may never return."""
    due_at = now + min(max(now - record.create_time.ToMilliseconds(), MIN_READ_INTERVAL), MAX_READ_INTERVAL)
    if expires_at(record) > now:
        due_at = min(due_at, expires_at(record) + MINUTE)
    await _add_reading(f"{record.payment_id}/read/{due_at}", due_at)


async def _add_reading(id: str, due_at: int) -> None:
    await jobs.add(QUEUE, id, b"", priority=jobs.REMINDERS, due_at=due_at, expires_at=due_at + JOB_LIFETIME)


def parse_job_id(id: str) -> tuple[str, str, str]:
    """Return the payment's id, the kind of job (empty: create the payment) and the rest of the id."""
    payment_id, kind, rest = (*id.split("/", 2), "", "")[:3]
    return payment_id, kind, rest


async def on_discarded(job: Job, _reason: str) -> None:
    """Let the next report request a refresh. A payment without outcome stays UNKNOWN; its dead letter is alerted on."""
    payment_id, kind, _ = parse_job_id(job.id)
    if kind:
        await rows(NO_REFRESH, payment_id=payment_id)


async def save(before: Stored, after: pb.Payment, *, client_secret: str = "", refusal: str = "") -> None:
    """Store a record and its change. Await this last: it takes the change log's lock."""
    after.update_time.FromMilliseconds(before.now)
    if after.HasField("expires_time") and after.expires_time != before.record.expires_time:
        due_at = after.expires_time.ToMilliseconds() + MINUTE
        await _add_reading(f"{after.payment_id}/refresh/{due_at}", due_at)
    number = None
    if before.sole and is_paid(after) and not is_paid(before.record):
        # Lock the counter first, so that the second of two concurrent successes sees the first.
        number = await change_log.count()
        if await _excluded(PAID_TOO, before):
            add_alert(after, pb.PAYMENT_ALERT_PAID_TWICE)
        for other in await _excluded(OPEN_TOO, before):
            await jobs.add(QUEUE, f"{other}/refresh/{before.payment_id}", b"", priority=jobs.REMINDERS)
    for alert in set(after.alerts) - set(before.record.alerts):
        await jobs.add(QUEUE, f"{after.payment_id}/alert/{pb.PaymentAlert.Name(alert)}", b"")
    await rows(
        SAVE,
        payment_id=before.payment_id,
        intent_id=after.stripe_payment_intent_id,
        client_secret=client_secret or before.client_secret,
        status=status_of(after),
        rank=rank_of(after),
        refusal=refusal or before.refusal,
        record=after.SerializeToString(),
    )
    await change_log.append(before.record, after, number)


async def _excluded(sql: str, payment: Stored) -> list[str]:
    found = await rows(
        sql, caller=payment.caller, appointment_id=payment.record.appointment_id, payment_id=payment.payment_id
    )
    return [str(row["payment_id"]) for row in found]


def with_attempt(record: pb.Payment, outcome: pb.AttemptOutcome.ValueType) -> pb.Payment:
    after = pb.Payment()
    after.CopyFrom(record)
    after.last_attempt = outcome
    return after
