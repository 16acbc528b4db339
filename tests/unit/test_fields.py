"""A request is read to its end, and everything wrong with it is told at once."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import InvalidRequest
from services.chassis.fields import Fields
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2


def request() -> email_pb2.SendPaymentNoticeRequest:
    message = email_pb2.SendPaymentNoticeRequest(idempotency_key="k")
    message.recipient.address = "ana@example.com.br"
    message.kind = common.PAYMENT_NOTICE_KIND_SUCCEEDED
    message.payment.amount.amount_minor = 15000
    message.payment.amount.currency = "BRL"
    message.payment.paid_time.FromDatetime(datetime(2026, 3, 12, tzinfo=UTC))
    return message


def read(message: email_pb2.SendPaymentNoticeRequest) -> list[object]:
    fields = Fields(message)
    values: list[object] = [fields.key(), fields.choice("kind")]
    if recipient := fields.child("recipient"):
        values += [recipient.email("address"), recipient.text("name", most=5)]
    if payment := fields.child("payment"):
        values += [payment.money("amount"), payment.time("paid_time", required=True)]
    fields.check()
    return values


def test_a_right_request_is_read_into_values() -> None:
    paid_at = datetime(2026, 3, 12, tzinfo=UTC)

    assert ["k", "SUCCEEDED", "ana@example.com.br", "", (15000, "BRL"), paid_at] == read(request())


def test_every_wrong_field_is_named_by_its_path() -> None:
    message = request()
    message.idempotency_key = "x" * 256
    message.kind = 99  # type: ignore[assignment]  # as a newer client may send it
    message.recipient.address = "ana@"
    message.recipient.name = "a\nBcc: b"
    message.payment.amount.amount_minor = -1
    message.payment.amount.currency = "brl"
    message.payment.paid_time.seconds = 10**15

    with pytest.raises(InvalidRequest) as refused:
        read(message)

    assert [violation.field for violation in refused.value.violations] == [
        "idempotency_key",
        "kind",
        "recipient.address",
        "recipient.name",
        "payment.amount.amount_minor",
        "payment.amount.currency",
        "payment.paid_time",
    ]


def test_absent_messages_are_named_once() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(email_pb2.SendPaymentNoticeRequest())

    assert [violation.field for violation in refused.value.violations] == [
        "idempotency_key",
        "kind",
        "recipient",
        "payment",
    ]


UNCLEAR_ZONES = [
    "Etc/GMT+3", "Etc/GMT-14", "Etc/Greenwich", "Factory", "localtime", "posixrules", "posix/America/Sao_Paulo",
    "right/America/Bahia", "EST", "EST5EDT", "GMT+0", "Zulu", "Portugal", "America/../Etc/GMT+3",
]  # fmt: skip


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "America", "America/", "x" * 65, *UNCLEAR_ZONES])
def test_a_time_zone_that_is_not_a_place_s_is_refused(name: str) -> None:
    fields = Fields(common.Appointment(time_zone=name))

    assert fields.zone("time_zone") == ZoneInfo("America/Sao_Paulo")
    with pytest.raises(InvalidRequest):
        fields.check()


@pytest.mark.parametrize("name", ["America/Noronha", "America/Argentina/Buenos_Aires", "Europe/Lisbon", "UTC"])
def test_a_time_zone_of_a_place_is_read(name: str) -> None:
    fields = Fields(common.Appointment(time_zone=name))

    assert fields.zone("time_zone") == ZoneInfo(name)
    fields.check()


@pytest.mark.parametrize("seconds", [-62135596800, 253402300799, -1, 0, 946684799, 7258118400, -(2**63), 2**63 - 1])
def test_a_time_outside_the_years_of_this_system_is_refused(seconds: int) -> None:
    fields = Fields(common.Appointment(start_time=Timestamp(seconds=seconds)))

    assert fields.time("start_time") is None
    with pytest.raises(InvalidRequest, match="start_time: must be a time between the years 2000 and 2199"):
        fields.check()
