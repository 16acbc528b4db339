"""
The statuses of a payment, ranked: a payment moves only forward, whatever the order of the reports.

    CREATING, UNKNOWN ─▶ AWAITING_METHOD ⇄ AWAITING_CUSTOMER ⇄ PROCESSING ─▶ AUTHORIZED
        ─▶ CANCELED, FAILED, EXPIRED ─▶ SUCCEEDED

The three open statuses share a rank. A decline leads back, so two reports of them do not tell which is newer.
Captured money outranks a payment that we closed.
"""

from typing import Literal

from services.payments.provider import PaymentSnapshot
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

FINAL = 80
RANKS = {
    "CREATING": 0,
    "UNKNOWN": 0,
    "AWAITING_METHOD": 10,
    "AWAITING_CUSTOMER": 10,
    "PROCESSING": 10,
    "AUTHORIZED": 20,
    "CANCELED": FINAL,
    "FAILED": FINAL,
    "EXPIRED": FINAL,
    "SUCCEEDED": 90,
}
PREFIX = "PAYMENT_STATUS_"
#: Milliseconds until an unpaid payment expires: a form after its last change, a code or voucher after its own expiry.
#: A boleto that is paid on its last day is confirmed up to two business days later, over a long weekend.
FORM_LIFETIME, CODE_GRACE = 86_400_000, 5 * 86_400_000

Comparison = Literal["FORWARD", "UNCLEAR", "STALE"]

# Messages for the payer. Codes, and the ones that must stay secret: https://docs.stripe.com/declines/codes
DECLINES = {
    "insufficient_funds": "Saldo ou limite insuficiente. Tente outro cartão.",
    "expired_card": "O cartão está vencido. Tente outro cartão.",
    "incorrect_cvc": "O código de segurança está incorreto. Confira e tente de novo.",
    "incorrect_number": "O número do cartão está incorreto. Confira e tente de novo.",
    "processing_error": "O banco não conseguiu processar agora. Tente de novo em instantes.",
    "authentication_required": "O banco pede uma confirmação. Tente de novo e confirme.",
}
DECLINED = "O pagamento foi recusado pelo banco. Tente outra forma de pagamento."


def status_of(record: pb.Payment) -> str:
    return pb.PaymentStatus.Name(record.status).removeprefix(PREFIX)


def rank_of(record: pb.Payment) -> int:
    return RANKS[status_of(record)]


def compare(before: pb.Payment, after: pb.Payment) -> Comparison:
    """Compare a record with its state after a report. UNCLEAR: only the provider knows which one is newer."""
    if rank_of(after) > rank_of(before):
        return "FORWARD"
    if rank_of(after) < rank_of(before) or rank_of(before) >= FINAL or after == before:
        return "STALE"
    return "UNCLEAR"


def with_snapshot(before: pb.Payment, snapshot: PaymentSnapshot, *, confirmed: bool, now: int) -> pb.Payment:
    """Return the record as it is if this snapshot is the latest."""
    after = pb.Payment()
    after.CopyFrom(before)
    ended = snapshot.expired or (snapshot.status == "CANCELED" and _has_expired(before, now))
    status: str = "EXPIRED" if confirmed and ended else snapshot.status
    if status == "UNKNOWN":
        status = status_of(before)
    after.status = pb.PaymentStatus.Value(PREFIX + status)
    after.stripe_payment_intent_id = snapshot.intent_id
    after.amount_captured.amount_minor = snapshot.captured_minor
    after.amount_captured.currency = snapshot.currency
    if snapshot.method:
        after.method = common.PaymentMethod.Value(f"PAYMENT_METHOD_{snapshot.method}")
    elif status == "SUCCEEDED" and not confirmed:  # the payer may have paid with another method than the last one shown
        after.method = common.PAYMENT_METHOD_UNSPECIFIED
    _set_decline(after, snapshot)
    _set_next_step(after, snapshot, confirmed=confirmed)
    if status == "SUCCEEDED":
        after.paid_time.FromMilliseconds(now if snapshot.at is None else snapshot.at * 1000)
        if _amount_differs(before, snapshot):
            add_alert(after, pb.PAYMENT_ALERT_AMOUNT_DIFFERS)
    return after


def is_paid(record: pb.Payment) -> bool:
    return record.status == pb.PAYMENT_STATUS_SUCCEEDED


def is_unpaid(snapshot: PaymentSnapshot) -> bool:
    """Return whether the payer has not acted yet, so that no bank is processing the payment."""
    return snapshot.status in ("AWAITING_METHOD", "AWAITING_CUSTOMER")


def expires_at(record: pb.Payment) -> int:
    """Return the epoch milliseconds at which the unpaid payment expires."""
    if record.HasField("expires_time"):
        return record.expires_time.ToMilliseconds() + CODE_GRACE
    return record.update_time.ToMilliseconds() + FORM_LIFETIME


def add_alert(record: pb.Payment, alert: pb.PaymentAlert.ValueType) -> None:
    if alert not in record.alerts:
        record.alerts.append(alert)


def _amount_differs(record: pb.Payment, snapshot: PaymentSnapshot) -> bool:
    """Return whether the amount is wrong. A smaller capture is right only with manual capture."""
    requested = record.amount
    partial = record.capture == pb.CAPTURE_METHOD_MANUAL and snapshot.captured_minor <= requested.amount_minor
    same = (snapshot.amount_minor, snapshot.currency) == (requested.amount_minor, requested.currency)
    return not same or (snapshot.captured_minor != requested.amount_minor and not partial)


def _has_expired(record: pb.Payment, now: int) -> bool:
    return record.HasField("expires_time") and record.expires_time.ToMilliseconds() <= now


def decline_of(code: str, advice: str) -> pb.Decline:
    return pb.Decline(code=code, advice=advice, message=DECLINES.get(code, DECLINED))


def _set_decline(after: pb.Payment, snapshot: PaymentSnapshot) -> None:
    after.ClearField("decline")
    if snapshot.decline is not None:
        after.decline.CopyFrom(decline_of(snapshot.decline.code, snapshot.decline.advice))


def _set_next_step(after: pb.Payment, snapshot: PaymentSnapshot, *, confirmed: bool) -> None:
    """Set the payer's next step, unless Stripe's form in the payer's browser shows it."""
    for field in ("pix", "boleto", "expires_time"):
        after.ClearField(field)
    step = snapshot.step
    if step is None or snapshot.status != "AWAITING_CUSTOMER":
        return
    if confirmed and step.method == "PIX":
        after.pix.text, after.pix.image_url = step.text, step.url
    elif confirmed:
        after.boleto.line, after.boleto.url = step.text, step.url
    if step.expires_at:
        after.expires_time.FromSeconds(step.expires_at)
    if step.expires_at and confirmed:
        (after.pix if step.method == "PIX" else after.boleto).expires_time.FromSeconds(step.expires_at)
