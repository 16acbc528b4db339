"""
What answers, readings and events teach about a payment, as transactions.

A payment's row is locked before a report of it is judged, so that two of them are judged one after the other.
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
    Store the answer to creating it. Events may have told more by now: then it only adds what they did not know.

    With `again`, Stripe may have repeated an answer of long ago: what became of it since is asked for.
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
    """Store a no, the same answer for every repetition of the key; without an original, it is ours and not Stripe's."""
    before = await locked(payment_id)
    outcome = pb.ATTEMPT_OUTCOME_NOT_SENT if error.original is None else pb.ATTEMPT_OUTCOME_DECLINED
    after = with_attempt(before.record, outcome)
    if before.rank < FINAL:
        after.status = pb.PAYMENT_STATUS_FAILED
    if error.reason == "DECLINED":
        after.decline.CopyFrom(decline_of(error.metadata["decline_code"], error.metadata["advice_code"]))
    await save(before, after, refusal=refusal_of(payment_id, error))


def must_cancel(before: Stored, snapshot: PaymentSnapshot) -> bool:
    """Whether an unpaid payment is to be canceled: nobody will pay it any more, or we have told so already."""
    after = _with_snapshot(before, snapshot)
    return is_unpaid(snapshot) and (before.rank >= FINAL or rank_of(after) >= FINAL or before.now > expires_at(after))


async def apply_reading(payment_id: str, snapshot: PaymentSnapshot, version: int, scheduled: bool) -> None:
    """
    Store what was read. It counts as the latest only if nothing was stored since the reading began.

    With `scheduled`, the payment's next reading is scheduled for as long as it stays open.
    """
    before = await locked(payment_id)
    if not before.intent_id and snapshot.payment_id != payment_id:
        return  # an event named a PaymentIntent that is not this payment's
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
    """Apply what an event says of a payment; None: there is no such payment."""
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
    else:  # a code that ran out may have been paid since
        await request_refresh(before.payment_id, snapshot.intent_id)
    return common.EVENT_OUTCOME_APPLIED


async def apply_reference(event_id: str, intent_id: str, payment_id: str) -> common.EventOutcome.ValueType | None:
    """
    Have a payment that an event only names read again; None: there is no such payment.

    An event without an id is not remembered as applied.
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
    """By the PaymentIntent first: anybody with our account may change its metadata."""
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
    told = json.loads(text)
    return REFUSALS[told["kind"]](
        "stripe",
        None,
        told["message"],
        reason=told["reason"],
        metadata=told["metadata"],
        violations=[Violation(*violation) for violation in told["violations"]],
    )
