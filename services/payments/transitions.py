"""
The transactions that apply responses, readings and events to a payment.

Each one locks the payment's row before it compares the report with the row. So two reports run one after the other.
"""

import json

from services.chassis.database.transactions import maybe_one
from services.chassis.errors import (
    ExternalServiceError,
    ProviderRefusedInput,
    ProviderRejected,
    ServiceError,
    Violation,
)
from services.payments.provider import PaymentSnapshot
from services.payments.status import FINAL, compare, decline_of, expires_at, is_paid, is_unpaid, rank_of, with_snapshot
from services.payments.store import (
    BY_INTENT,
    GET,
    Stored,
    find,
    locked,
    request_refresh,
    save,
    schedule_reading,
    with_attempt,
)
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

APPLIED = "SELECT event_id FROM stripe_event WHERE event_id = :event_id"
REMEMBER = """
    INSERT INTO stripe_event (event_id, applied_at) VALUES (:event_id, now_ms())
    ON CONFLICT DO NOTHING RETURNING event_id
"""


async def apply_creation(payment_id: str, snapshot: PaymentSnapshot, again: bool) -> None:
    """
    Store Stripe's response to a creation. If an event has already moved the payment on, only add what is missing.

    With `again`, Stripe may have repeated an old response: request a refresh.
    """
    before = await locked(payment_id)
    after = _with_snapshot(before, snapshot)
    verdict = compare(before.record, after)
    if verdict != "FORWARD":
        after = before.record
    if (verdict == "UNCLEAR" or again) and before.rank < FINAL:
        await request_refresh(payment_id)
    after = with_attempt(after, pb.ATTEMPT_OUTCOME_DONE)
    after.stripe_payment_intent_id = snapshot.intent_id
    if rank_of(after) < FINAL:
        await schedule_reading(after, before.now)
    await save(before, after, client_secret=snapshot.client_secret)


async def apply_refusal(payment_id: str, error: ExternalServiceError) -> None:
    """Store a refusal for every repetition of the key. Without `error.original` the refusal is ours, not Stripe's."""
    before = await locked(payment_id)
    outcome = pb.ATTEMPT_OUTCOME_NOT_SENT if error.original is None else pb.ATTEMPT_OUTCOME_DECLINED
    after = with_attempt(before.record, outcome)
    if before.rank < FINAL:
        after.status = pb.PAYMENT_STATUS_FAILED
    if error.reason == "DECLINED":
        after.decline.CopyFrom(decline_of(error.metadata["decline_code"], error.metadata["advice_code"]))
    await save(before, after, refusal=refusal_of(payment_id, error))


def must_cancel(before: Stored, snapshot: PaymentSnapshot) -> bool:
    """Return whether to cancel an unpaid payment: it has expired, or its record is closed already."""
    after = _with_snapshot(before, snapshot)
    return is_unpaid(snapshot) and (before.rank >= FINAL or rank_of(after) >= FINAL or before.now > expires_at(after))


async def apply_reading(payment_id: str, snapshot: PaymentSnapshot, version: int, scheduled: bool) -> None:
    """
    Store a reading. It is the latest state only if nothing was stored since the reading began.

    With `scheduled`, schedule the payment's next reading while it stays open.
    """
    before = await locked(payment_id)
    if not before.intent_id and snapshot.payment_id != payment_id:
        return  # the event named a PaymentIntent of another payment
    after = _with_snapshot(before, snapshot)
    verdict = compare(before.record, after)
    stored = verdict == "FORWARD" or (verdict == "UNCLEAR" and before.version == version)
    latest = after if stored else before.record
    if scheduled and rank_of(latest) < FINAL:
        await schedule_reading(latest, before.now)
    if stored:
        await save(before, after)
    elif verdict == "UNCLEAR":
        await request_refresh(payment_id)


async def apply_report(event_id: str, snapshot: PaymentSnapshot) -> common.EventOutcome.ValueType | None:
    """Apply an event's snapshot to its payment. Return None if there is no such payment."""
    before = await _locked(snapshot.intent_id, snapshot.payment_id)
    if before is None:
        return None
    if before.intent_id not in ("", snapshot.intent_id):
        return common.EVENT_OUTCOME_IGNORED_FOREIGN
    if await maybe_one(APPLIED, event_id=event_id) is not None:
        return common.EVENT_OUTCOME_DUPLICATE
    after = _with_snapshot(before, snapshot)
    verdict = compare(before.record, after)
    if verdict == "STALE":
        return common.EVENT_OUTCOME_STALE
    await maybe_one(REMEMBER, event_id=event_id)
    if verdict == "FORWARD" and after.status != pb.PAYMENT_STATUS_EXPIRED:
        await save(before, after, client_secret=before.client_secret or snapshot.client_secret)
    else:  # the payer may have paid an expired code since
        await request_refresh(before.payment_id, snapshot.intent_id)
    return common.EVENT_OUTCOME_APPLIED


async def apply_reference(event_id: str, intent_id: str, payment_id: str) -> common.EventOutcome.ValueType | None:
    """
    Request a refresh of a payment that an event names without its state. Return None if there is no such payment.

    An event without an id is not stored as applied.
    """
    before = await _locked(intent_id, payment_id)
    if before is None:
        return None
    if event_id and await maybe_one(APPLIED, event_id=event_id) is not None:
        return common.EVENT_OUTCOME_DUPLICATE
    if is_paid(before.record):
        return common.EVENT_OUTCOME_STALE
    if event_id:
        await maybe_one(REMEMBER, event_id=event_id)
    await request_refresh(before.payment_id, intent_id)
    return common.EVENT_OUTCOME_APPLIED


async def _locked(intent_id: str, payment_id: str) -> Stored | None:
    """Find by the PaymentIntent first: anybody with access to our account can change its metadata."""
    found = await find(BY_INTENT, lock=True, intent_id=intent_id)
    if found is None and payment_id:
        found = await find(GET, lock=True, payment_id=payment_id)
    return found


def _with_snapshot(before: Stored, snapshot: PaymentSnapshot) -> pb.Payment:
    return with_snapshot(before.record, snapshot, confirmed=bool(before.confirmed), now=before.now)


REFUSALS: dict[str, type[ExternalServiceError]] = {
    kind.__name__: kind for kind in (ProviderRejected, ProviderRefusedInput)
}


def refusal_of(payment_id: str, error: ExternalServiceError) -> str:
    return json.dumps(
        {
            "kind": type(error).__name__,
            "message": error.message,
            "reason": error.reason,
            "metadata": {**error.metadata, "payment_id": payment_id},
            "violations": error.violations,
        }
    )


def refusal_from(text: str) -> ServiceError:
    stored = json.loads(text)
    return REFUSALS[stored["kind"]](
        "stripe",
        None,
        stored["message"],
        reason=stored["reason"],
        metadata=stored["metadata"],
        violations=[Violation(*violation) for violation in stored["violations"]],
    )
