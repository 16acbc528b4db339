"""Parsing of requests, which reports all wrong fields together."""

from contextlib import nullcontext
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis.strategies import text

from services.chassis.errors import InvalidRequest
from services.chassis.rpc.validation import Fields, check_events, normalized
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
        values += [recipient.email("address"), recipient.text("name", max_length=5)]
    if payment := fields.child("payment"):
        values += [payment.money("amount"), payment.time("paid_time", required=True)]
    fields.check()
    return values


def test_valid_request_is_parsed_into_values() -> None:
    paid_at = datetime(2026, 3, 12, tzinfo=UTC)

    assert ["k", "SUCCEEDED", "ana@example.com.br", "", (15000, "BRL"), paid_at] == read(request())


@pytest.mark.parametrize("key", ["notice:", "notice:pay_1:SUCCEEDED", " notice:x"])
def test_notice_key_is_refused_for_other_requests(key: str) -> None:
    notice = request()
    notice.idempotency_key = key
    assert read(notice)[0] == key.strip()
    fields = Fields(email_pb2.SendAppointmentReminderRequest(idempotency_key=key))
    fields.key()
    with pytest.raises(InvalidRequest) as refused:
        fields.check()

    assert [violation.reason for violation in refused.value.violations] == ["RESERVED_KEY"]


@pytest.mark.parametrize("key", ["notice", "Notice:1", "my-notice:1"])
def test_key_similar_to_a_notice_key_is_accepted(key: str) -> None:
    fields = Fields(email_pb2.SendAppointmentReminderRequest(idempotency_key=key))

    assert fields.key() == key
    fields.check()


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
def test_time_zone_that_is_no_place_is_refused(name: str) -> None:
    fields = Fields(common.Appointment(time_zone=name))

    assert fields.zone("time_zone") == ZoneInfo("America/Sao_Paulo")
    with pytest.raises(InvalidRequest):
        fields.check()


@pytest.mark.parametrize("name", ["America/Noronha", "America/Argentina/Buenos_Aires", "Europe/Lisbon", "UTC"])
def test_time_zone_of_a_place_is_accepted(name: str) -> None:
    fields = Fields(common.Appointment(time_zone=name))

    assert fields.zone("time_zone") == ZoneInfo(name)
    fields.check()


@pytest.mark.parametrize("seconds", [-62135596800, 253402300799, -1, 0, 946684799, 7258118400, -(2**63), 2**63 - 1])
def test_time_outside_the_allowed_years_is_refused(seconds: int) -> None:
    fields = Fields(common.Appointment(start_time=Timestamp(seconds=seconds)))

    assert fields.time("start_time") is None
    with pytest.raises(InvalidRequest, match="start_time: must be a time between the years 2000 and 2199"):
        fields.check()


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("Ana\u00a0Souza", "Ana Souza"),
        ("\ufeffAna \u200eSouza\u200f", "Ana Souza"),
        ("Concei\u00ad\u00e7\u00e3o", "Conceição"),
        ("Jose\u0301", "José"),
        ("Ana\tMaria\u2003Luz\u202f", "Ana Maria Luz"),
        ("Rua A, 1\r\n", "Rua A, 1"),
        ("\u202eanA", "anA"),
        ("(11)\u00a091234\u20605678", "(11) 912345678"),
        ("A\u200dna", "Ana"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("👩\u200d⚕️", "👩\u200d⚕️"),
        ("👩\u200d", "👩"),
    ],
)
def test_one_line_text_is_normalized(typed: str, seen: str) -> None:
    fields = Fields(email_pb2.Recipient(name=typed))

    assert fields.text("name", max_length=200) == seen
    fields.check()


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("Jejum\r\nde 8 h", "Jejum\nde 8 h"),
        ("RG\te CPF\r", "RG e CPF"),
        ("Traga:\u2028exames\u2029", "Traga:\nexames"),
        ("a\x0bb\x0cc\x85d", "a\nb\nc\nd"),
        ("Família 👨\u200d👩\u200d👧 \u00adok", "Família 👨\u200d👩\u200d👧 ok"),
        ("🫨 🪽", "🫨 🪽"),
    ],
)
def test_multiline_text_keeps_its_lines_and_emoji(typed: str, seen: str) -> None:
    fields = Fields(common.Appointment(notes=typed))

    assert fields.text("notes", max_length=1000, multiline=True) == seen
    fields.check()


@pytest.mark.parametrize("garbage", ["a\0b", "\x1b[2J", "a\x7f", "\ufdd0", "x\U0010ffff", "\x1c"])
def test_unprintable_characters_are_refused(garbage: str) -> None:
    fields = Fields(common.Appointment(notes=f"a{garbage}b"))

    fields.text("notes", max_length=1000, multiline=True)
    with pytest.raises(InvalidRequest, match="notes: must hold printable characters only"):
        fields.check()


@given(text(max_size=60))
def test_normalizing_twice_equals_once(typed: str) -> None:
    assert normalized(normalized(typed)) == normalized(typed)


@pytest.mark.parametrize("typed", ["Ana\r\nBcc: todos@example.com", "Ana\rSouza", "Ana\u2028Souza"])
def test_line_break_in_one_line_text_is_refused(typed: str) -> None:
    fields = Fields(email_pb2.Recipient(name=typed))

    fields.text("name", max_length=200)
    with pytest.raises(InvalidRequest, match="name: must be one line"):
        fields.check()


def test_normalized_text_is_stored_in_the_request_and_an_identifier_is_unchanged() -> None:
    message = common.Appointment(appointment_id="apt\u00ad 1", clinic="Clínica\u00a0Luz")
    fields = Fields(message)

    assert (fields.identifier("appointment_id"), fields.text("clinic", max_length=200)) == (
        "apt\u00ad 1",
        "Clínica Luz",
    )
    assert (message.appointment_id, message.clinic) == ("apt\u00ad 1", "Clínica Luz")


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("ana@clínica.com.br", "ana@xn--clnica-4va.com.br"),
        ("ana@BÜCHER.example", "ana@xn--bcher-kva.example"),
        ("ana@例え.jp", "ana@xn--r8jz45g.jp"),
        ("joão@saúde.org.br", "joão@xn--sade-rra.org.br"),
        ("\u200eana@example.com\u00a0", "ana@example.com"),
    ],
)
def test_email_address_has_its_domain_in_ascii(typed: str, address: str) -> None:
    message = email_pb2.Recipient(address=typed)
    fields = Fields(message)

    assert fields.email("address") == address
    assert message.address == address
    fields.check()


@pytest.mark.parametrize(
    ("bodies", "reasons"),
    [
        ([], ["WRONG_COUNT"]),
        ([b""] * 101, ["WRONG_COUNT"]),
        ([b"x" * (2 << 20), b"y"], ["TOO_MANY_BYTES"]),
        ([b"x" * (2 << 20)] * 101, ["WRONG_COUNT", "TOO_MANY_BYTES"]),
        ([b"x" * (2 << 20)], []),
        ([b""] * 100, []),
    ],
    ids=["none", "101", "a byte too many", "both", "all bytes", "100"],
)
def test_batch_of_events_beyond_its_limits_is_refused_with_every_reason(
    bodies: list[bytes], reasons: list[str]
) -> None:
    expected = pytest.raises(InvalidRequest) if reasons else nullcontext()
    with expected as refusal:
        check_events([common.ProviderEvent(body=body) for body in bodies])

    violations = refusal.value.violations if refusal else ()
    assert [violation.reason for violation in violations] == reasons
