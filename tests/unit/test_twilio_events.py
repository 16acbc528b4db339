"""Status callbacks as Twilio writes them, and as anybody else might."""

from urllib.parse import urlencode

import pytest

from services.sms.twilio_events import StatusEvent, read
from topsmile.common.v1 import common_pb2 as common


def event(query: str = "sms_id=sms_1&attempt=2", **form: str) -> common.ProviderEvent:
    fields = {"MessageSid": "SM1", "MessageStatus": "sent", "To": "+5511912345678", "RawDlrDoneDate": "", **form}
    return common.ProviderEvent(event_id="e1", body=urlencode(fields).encode(), query=query)


@pytest.mark.parametrize(
    ("told", "code", "status"),
    [
        ("accepted", "", "SENT"),
        ("queued", "", "SENT"),
        ("sent", "", "SENT"),
        ("delivered", "", "DELIVERED"),
        ("read", "", "DELIVERED"),
        ("undelivered", "30003", "UNDELIVERED"),
        ("failed", "30008", "UNDELIVERED"),
        ("failed", "21610", "SUPPRESSED"),
        ("received", "", ""),
        ("canceled", "", ""),
    ],
)
def test_twilio_s_words_become_ours(told: str, code: str, status: str) -> None:
    got = read(event(MessageStatus=told, ErrorCode=code))

    assert got == StatusEvent("e1", "SM1", "sms_1", status, f"Twilio {code}" if code else "")


def test_an_older_callback_says_the_same_in_older_fields() -> None:
    body = urlencode({"SmsSid": "SM1", "SmsStatus": "delivered"}).encode()

    assert read(common.ProviderEvent(event_id="e1", body=body)) == StatusEvent("e1", "SM1", "", "DELIVERED", "")


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"null", b"[]", b"MessageSid=SM1", b"MessageStatus=sent", b"&&&", b"a=1&" * 200]
)
def test_what_is_no_callback_is_rejected_with_the_reason(body: bytes) -> None:
    assert isinstance(read(common.ProviderEvent(event_id="e1", body=body)), str)


def test_a_query_that_is_garbage_names_no_text() -> None:
    for query in ("%ff%00", "&" * 500, "sms_id"):
        got = read(event(query))
        assert isinstance(got, StatusEvent)
        assert got.sms_id == ""
