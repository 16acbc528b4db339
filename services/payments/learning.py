"""
What answers, readings and events teach about a payment, as transactions.

A payment's row is locked before a report of it is judged, so that two of them are judged one after the other.
"""

import json

from services.chassis.database import maybe_one
from services.chassis.errors import (
    ExternalServiceError,
    ProviderRefusedInput,
    ProviderRejected,
    ServiceError,
    Violation,
)
from services.payments.lattice import FINAL, decline_of, judge, moved
from services.payments.provider import Standing
from services.payments.store import BY_INTENT, GET, Stored, add_look, ask_refresh, find, locked, save, with_attempt
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

#: How often an unpaid code or voucher is looked at after it ran out: a minute later, then daily, over a long weekend.
LOOKS = 6
DAY = 86_400_000

REMEMBER = """
    INSERT INTO stripe_event (event_id, applied_at) VALUES (:event_id, now_ms())
    ON CONFLICT DO NOTHING RETURNING event_id
"""


async def created(payment_id: str, standing: Standing, again: bool) -> None:
    """
    Store the answer to creating it. Events may have told more by now: then it only adds what they did not know.

    With `again`, Stripe may have repeated an answer of long ago: what became of it since is asked for.
    """
    before = await locked(payment_id)
    after = moved(before.record, standing, confirmed=bool(before.confirmed), now=before.now)
    verdict = judge(before.record, after)
    if verdict != "FORWARD":
        after = before.record
    if (verdict == "UNCLEAR" or again) and before.rank < FINAL:
        await ask_refresh(payment_id)
    after = with_attempt(after, pb.ATTEMPT_OUTCOME_DONE)
    after.stripe_payment_intent_id = standing.intent_id
    await save(before, after, client_secret=standing.client_secret)


async def refused(payment_id: str, error: ExternalServiceError) -> None:
    """Store a no, the same answer for every repetition of the key; without an original, it is ours and not Stripe's."""
    before = await locked(payment_id)
    outcome = pb.ATTEMPT_OUTCOME_NOT_SENT if error.original is None else pb.ATTEMPT_OUTCOME_DECLINED
    after = with_attempt(before.record, outcome)
    if before.rank < FINAL:
        after.status = pb.PAYMENT_STATUS_FAILED
    if error.reason == "DECLINED":
        after.decline.CopyFrom(decline_of(error.metadata["decline_code"], error.metadata["advice_code"]))
    await save(before, after, refusal=refusal_of(payment_id, error))


async def learned(payment_id: str, standing: Standing, version: int, look: int | None) -> None:
    """Store what was read. It counts as the latest only if nothing was stored since the reading began."""
    before = await locked(payment_id)
    after = moved(before.record, standing, confirmed=bool(before.confirmed), now=before.now)
    verdict = judge(before.record, after)
    if verdict == "FORWARD" or (verdict == "UNCLEAR" and before.version == version):
        await save(before, after)
    elif verdict == "UNCLEAR":
        await ask_refresh(payment_id)
    elif look is not None and before.record.HasField("expires_time"):
        await _look_again(before, look)


async def _look_again(before: Stored, look: int) -> None:
    if before.rank >= FINAL or before.record.expires_time.ToMilliseconds() > before.now:
        return
    if look + 1 < LOOKS:
        await add_look(before.record, look + 1, before.now + DAY)
        return
    after = pb.Payment()
    after.CopyFrom(before.record)
    after.status = pb.PAYMENT_STATUS_EXPIRED
    after.ClearField("next_step")
    await save(before, after)


async def apply_report(event_id: str, standing: Standing) -> common.EventOutcome.ValueType | None:
    """Apply what an event says of a payment; None: there is no such payment."""
    before = await find(GET, lock=True, payment_id=standing.payment_id)
    if before is None:
        return None
    asked = before.record.amount
    same_object = before.intent_id in ("", standing.intent_id)
    if not same_object or (standing.amount_minor, standing.currency) != (asked.amount_minor, asked.currency):
        return common.EVENT_OUTCOME_IGNORED_FOREIGN
    if await maybe_one(REMEMBER, event_id=event_id) is None:
        return common.EVENT_OUTCOME_DUPLICATE
    after = moved(before.record, standing, confirmed=bool(before.confirmed), now=before.now)
    verdict = judge(before.record, after)
    if verdict == "FORWARD":
        await save(before, after, client_secret=before.client_secret or standing.client_secret)
    elif verdict == "UNCLEAR":
        await ask_refresh(before.payment_id)
    return common.EVENT_OUTCOME_STALE if verdict == "PAST" else common.EVENT_OUTCOME_APPLIED


async def apply_hint(event_id: str, intent_id: str) -> common.EventOutcome.ValueType | None:
    """Ask Stripe about a payment that an event only names; None: there is no such payment."""
    before = await find(BY_INTENT, lock=True, intent_id=intent_id)
    if before is None:
        return None
    if await maybe_one(REMEMBER, event_id=event_id) is None:
        return common.EVENT_OUTCOME_DUPLICATE
    if before.rank >= FINAL:
        return common.EVENT_OUTCOME_STALE
    await ask_refresh(before.payment_id)
    return common.EVENT_OUTCOME_APPLIED


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
