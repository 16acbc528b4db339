"""Which change of a payment tells whom: the whole table, and nothing else decides about it."""

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.payments.v1.payments_pb2 import Payment, PaymentChange
from topsmile.sms.v1 import sms_pb2

#: A payment that turns into the key is told as the value. The rest tells nobody: a declined try may succeed yet.
TOLD_AS = {payments_pb2.PAYMENT_STATUS_SUCCEEDED: common.PAYMENT_NOTICE_KIND_SUCCEEDED}
#: The methods that a notice names.
METHODS = {common.PAYMENT_METHOD_CARD, common.PAYMENT_METHOD_PIX, common.PAYMENT_METHOD_BOLETO}


class Notice(NamedTuple):
    """
    One notice to one recipient by one service; `key` is the same whenever the same fact is learnt again.

    It is the idempotency key, in the space of the payment's caller, and the id of the job that asks for the notice.
    """

    queue: str
    key: str
    request: Message


def notices(change: PaymentChange) -> Iterator[Notice]:
    payment = change.payment
    kind = TOLD_AS.get(payment.status)
    if kind is None or change.previous_status == payment.status:
        return
    key = f"notice:{payment.payment_id}:{common.PaymentNoticeKind.Name(kind).removeprefix('PAYMENT_NOTICE_KIND_')}"
    summary = _summary(payment, payment.paid_time if payment.HasField("paid_time") else change.change_time)
    if payment.payer.email:
        recipient = email_pb2.Recipient(address=payment.payer.email, name=payment.payer.name)
        mail = email_pb2.SendPaymentNoticeRequest(idempotency_key=key, recipient=recipient, kind=kind, payment=summary)
        yield Notice("email", key, mail)
    if payment.payer.phone:
        text = sms_pb2.SendPaymentNoticeRequest(
            idempotency_key=key, recipient=payment.payer.phone, kind=kind, payment=summary
        )
        yield Notice("sms", key, text)


def _summary(payment: Payment, paid_at: Timestamp) -> common.PaymentSummary:
    return common.PaymentSummary(
        payment_id=payment.payment_id,
        amount=payment.amount_captured if payment.amount_captured.amount_minor else payment.amount,
        description=payment.description,
        appointment_id=payment.appointment_id,
        patient_name=payment.payer.name,
        paid_time=paid_at,
        method=payment.method if payment.method in METHODS else None,
    )
