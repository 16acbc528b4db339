"""Which change of a payment tells whom: the whole table, and nothing else decides about it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.payments.v1.payments_pb2 import Payment, PaymentChange
from topsmile.sms.v1 import sms_pb2

#: A payment that turns into the key is told as the value. The rest tells nobody: a declined try may succeed yet.
TOLD_AS = {payments_pb2.PAYMENT_STATUS_SUCCEEDED: "SUCCEEDED"}
METHODS = {
    payments_pb2.PAYMENT_METHOD_CARD: "PAYMENT_METHOD_CARD",
    payments_pb2.PAYMENT_METHOD_PIX: "PAYMENT_METHOD_PIX",
    payments_pb2.PAYMENT_METHOD_BOLETO: "PAYMENT_METHOD_BOLETO",
}


class Notice(NamedTuple):
    """One notice to one recipient by one service; `key` is the same whenever the same fact is learnt again."""

    queue: str
    key: str
    request: Message


def notices(change: PaymentChange) -> Iterator[Notice]:
    payment = change.payment
    kind = TOLD_AS.get(payment.status)
    if kind is None or change.previous_status == payment.status:
        return
    key = f"{payment.payment_id}:{kind}"
    paid_at = payment.paid_time if payment.HasField("paid_time") else change.change_time
    if payment.payer.email:
        yield Notice("email", key, _mail(payment, key, kind, paid_at))
    if payment.payer.phone:
        yield Notice("sms", key, _text(payment, key, kind, paid_at))


def _mail(payment: Payment, key: str, kind: str, paid_at: Timestamp) -> Message:
    return email_pb2.SendPaymentNoticeRequest(
        idempotency_key=key,
        recipient=email_pb2.Recipient(address=payment.payer.email, name=payment.payer.name),
        kind=email_pb2.PaymentNoticeKind.Value(f"PAYMENT_NOTICE_KIND_{kind}"),
        payment=_summary(email_pb2, payment, paid_at),
    )


def _text(payment: Payment, key: str, kind: str, paid_at: Timestamp) -> Message:
    return sms_pb2.SendPaymentNoticeRequest(
        idempotency_key=key,
        recipient=payment.payer.phone,
        kind=sms_pb2.PaymentNoticeKind.Value(f"PAYMENT_NOTICE_KIND_{kind}"),
        payment=_summary(sms_pb2, payment, paid_at),
    )


def _summary(contract: Any, payment: Payment, paid_at: Timestamp) -> Any:
    """Say it in the words of email's or sms's contract: they share none, and number their methods differently."""
    paid = payment.amount_captured if payment.amount_captured.amount_minor else payment.amount
    method = METHODS.get(payment.method)
    return contract.PaymentSummary(
        payment_id=payment.payment_id,
        amount=contract.Money(amount_minor=paid.amount_minor, currency=paid.currency),
        description=payment.description,
        appointment_id=payment.appointment_id,
        patient_name=payment.payer.name,
        paid_time=paid_at,
        method=contract.PaymentMethod.Value(method) if method else None,
    )
