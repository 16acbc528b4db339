"""Whatever a signed event holds, reading it gives an outcome, an object to read again, or a payment's snapshot."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.payments import stripe_events
from services.payments.provider import MAX_TIME, PaymentSnapshot
from services.payments.stripe_events import IgnoredEvent, ObjectReference
from topsmile.common.v1 import common_pb2 as common

INTENT: dict[str, Any] = {
    "id": "pi_1",
    "amount": 15000,
    "amount_received": 15000,
    "currency": "brl",
    "livemode": False,
    "status": "succeeded",
    "client_secret": "pi_1_secret_1",
    "metadata": {"topsmile_payment_id": "pay_1"},
    "payment_method_types": ["card"],
    "payment_method": "pm_1",
    "latest_charge": {"id": "ch_1", "created": 1_700_000_000, "payment_method_details": {"type": "card"}},
    "last_payment_error": {
        "code": "card_declined",
        "decline_code": "generic_decline",
        "advice_code": "try_again_later",
    },
    "next_action": {
        "type": "pix_display_qr_code",
        "pix_display_qr_code": {"data": "000201", "image_url_png": "https://x", "expires_at": 1_800_000_000},
    },
}
EVENT = {
    "id": "evt_1",
    "object": "event",
    "type": "payment_intent.succeeded",
    "created": 1_700_000_000,
    "livemode": False,
    "data": {"object": INTENT},
}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**30), 10**30) | st.floats() | st.text()
    | st.sampled_from(["\0", "\ud800", "1e400", "pi_1", "", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [each for key in value for each in paths(value[key], (*path, key))] if isinstance(value, dict) else []
    return ([path] if path else []) + below


def replaced(value: Any, path: tuple[str, ...], by: Any) -> Any:
    return {**value, path[0]: replaced(value[path[0]], path[1:], by)} if path else by


@given(st.sampled_from(paths(EVENT)), VALUES)
def test_an_event_with_any_value_in_any_place_is_read(path: tuple[str, ...], value: Any) -> None:
    body = json.dumps(replaced(EVENT, path, value)).encode()
    read = stripe_events.read(common.ProviderEvent(event_id="evt_1", body=body), livemode=False)

    match read:
        case PaymentSnapshot():
            assert 0 <= read.captured_minor <= 99_999_999
            assert 0 <= read.amount_minor <= 99_999_999
            assert 0 <= (read.at or 0) <= MAX_TIME
            assert "\0" not in read.intent_id + read.client_secret + read.payment_id
        case ObjectReference():
            assert read.intent_id.startswith("pi_")
        case IgnoredEvent():
            assert read.detail


@given(st.binary() | st.text().map(str.encode) | VALUES.map(json.dumps).map(str.encode))
def test_a_body_of_any_bytes_is_ruled_upon(body: bytes) -> None:
    assert isinstance(
        stripe_events.read(common.ProviderEvent(event_id="evt_1", body=body), livemode=False), IgnoredEvent
    )
