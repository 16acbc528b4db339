"""Status callbacks as Twilio writes them, and as anybody else might."""

from urllib.parse import urlencode

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.messaging.events import IgnoredEvent, InvalidEvent, StatusEvent
from services.sms.twilio_events import read
from topsmile.common.v1 import common_pb2 as common

UNEXPECTED = "topsmile_provider_unexpected_total"


def event(query: str = "sms_id=sms_1&attempt=2", **form: str) -> common.ProviderEvent:
    fields = {"MessageSid": "SM1", "MessageStatus": "sent", "To": "+5511912345678", "RawDlrDoneDate": "", **form}
    return common.ProviderEvent(event_id="e1", body=urlencode(fields).encode(), query=query)


@pytest.mark.parametrize(
    ("twilio_status", "code", "status", "reason"),
    [
        ("accepted", "", "SENT", ""),
        ("queued", "", "SENT", ""),
        ("sent", "", "SENT", ""),
        ("delivered", "", "DELIVERED", ""),
        ("read", "", "DELIVERED", ""),
        ("undelivered", "30003", "UNDELIVERED", "PROVIDER_REJECTED"),
        ("undelivered", "30005", "UNDELIVERED", "PROVIDER_REFUSED_INPUT"),
        ("failed", "30008", "UNDELIVERED", "PROVIDER_REJECTED"),
        ("failed", "30006", "UNDELIVERED", "PROVIDER_REFUSED_INPUT"),
        ("failed", "21610", "SUPPRESSED", "PROVIDER_REJECTED"),
        ("failed", "30001", "FAILED", "THROTTLED"),
    ],
)
def test_twilio_s_words_become_ours(twilio_status: str, code: str, status: str, reason: str) -> None:
    got = read(event(MessageStatus=twilio_status, ErrorCode=code))

    assert isinstance(got, StatusEvent)
    assert (got.event_id, got.provider_message_id, got.message_id, got.attempt) == ("e1", "SM1", "sms_1", 2)
    assert (got.status, got.detail, got.failure_reason) == (status, f"Twilio {code}" if code else "", reason)


@pytest.mark.parametrize("twilio_status", ["received", "receiving", "canceled", "partially_delivered", "?"])
def test_status_without_meaning_here_is_ignored(twilio_status: str) -> None:
    assert isinstance(read(event(MessageStatus=twilio_status)), IgnoredEvent)


@pytest.mark.parametrize("twilio_status", ["failed", "undelivered"])
@pytest.mark.parametrize(
    "code", ["10001", "20003", "20005", "20403", "21606", "21659", "21660", "21661", "30002", "30024", "30034"]
)
def test_a_fault_of_our_account_is_not_the_recipient_s(twilio_status: str, code: str) -> None:
    with capture_logs() as logs:
        got = read(event(MessageStatus=twilio_status, ErrorCode=code))

    assert isinstance(got, StatusEvent)
    assert (got.status, got.failure_reason) == ("FAILED", "PROVIDER_CREDENTIALS")
    assert logs == [
        {
            "event": "provider.unexpected",
            "service": "twilio",
            "what": "account_refused",
            "code": int(code),
            "log_level": "error",
        }
    ]


@pytest.mark.parametrize(
    ("code", "logged_code"),
    [
        ("30999", 30999),
        ("63999", 63999),
        ("1", 1),
        ("", 0),
        ("abc", 0),
        ("\N{FULLWIDTH DIGIT THREE}0003", 0),
        ("9" * 50, 0),
    ],
)
def test_a_code_that_is_not_in_the_table_is_final_and_an_alarm(code: str, logged_code: int) -> None:
    before = REGISTRY.get_sample_value(UNEXPECTED, {"service": "twilio", "what": "error_code"}) or 0.0
    with capture_logs() as logs:
        got = read(event(MessageStatus="undelivered", ErrorCode=code))

    assert isinstance(got, StatusEvent)
    assert (got.status, got.failure_reason) == ("UNDELIVERED", "PROVIDER_REJECTED")
    assert REGISTRY.get_sample_value(UNEXPECTED, {"service": "twilio", "what": "error_code"}) == before + 1
    assert logs == [
        {
            "event": "provider.unexpected",
            "service": "twilio",
            "what": "error_code",
            "code": logged_code,
            "log_level": "error",
        }
    ]


def test_an_older_callback_says_the_same_in_older_fields() -> None:
    body = urlencode({"SmsSid": "SM1", "SmsStatus": "delivered"}).encode()

    assert read(common.ProviderEvent(event_id="e1", body=body)) == StatusEvent(
        "twilio", "e1", "DELIVERED", provider_message_id="SM1"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"MessageSid=SM1",
        b"MessageStatus=sent",
        b"&&&",
        b"a=1&" * 200,
        b"MessageSid=SM%00&MessageStatus=sent",
        b"MessageSid=SM1&MessageStatus=failed&ErrorMessage=%00",
    ],
)
def test_what_is_no_callback_is_rejected_with_the_reason(body: bytes) -> None:
    assert isinstance(read(common.ProviderEvent(event_id="e1", body=body)), InvalidEvent)


def test_a_query_that_is_garbage_names_no_text() -> None:
    for query in ("%ff%00", "&" * 500, "sms_id"):
        got = read(event(query))
        assert isinstance(got, StatusEvent)
        assert (got.message_id, got.attempt) == ("", 0)
