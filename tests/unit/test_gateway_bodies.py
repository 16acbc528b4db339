"""JSON into messages: whatever is sent, what is wrong is named and nothing else happens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bodies import fill, to_json
from services.chassis.errors import Violation
from topsmile.common.v1.common_pb2 import PaymentMethod
from topsmile.email.v1.email_pb2 import SendAppointmentReminderRequest
from topsmile.payments.v1.payments_pb2 import CreatePaymentRequest

NAMES = [
    field.name for kind in (SendAppointmentReminderRequest, CreatePaymentRequest) for field in kind.DESCRIPTOR.fields
]
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["3s", "2026-01-01T00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(ANYTHING)
def test_whatever_is_sent_is_read_or_named(given: object) -> None:
    for message in (SendAppointmentReminderRequest(), CreatePaymentRequest()):
        wrong: list[Violation] = []
        fill(message, given, wrong)
        message.SerializeToString()
        if not isinstance(given, dict):
            assert wrong


@pytest.mark.parametrize(
    "moment",
    ["", "x", "2026", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "T", "0000-01-01T00:00:00Z"],
)
def test_what_is_no_moment_is_named(moment: str) -> None:
    wrong: list[Violation] = []
    fill(SendAppointmentReminderRequest(), {"send_time": moment}, wrong)
    assert [each.field for each in wrong] == ["send_time"]


def test_both_spellings_of_one_field_are_one_too_many() -> None:
    wrong: list[Violation] = []
    fill(CreatePaymentRequest(), {"patient_id": "a", "patientId": "a"}, wrong)
    assert [each.field for each in wrong] == ["patientId"]


def test_what_is_answered_can_be_sent_again() -> None:
    message = CreatePaymentRequest(
        appointment_id="apt_1", methods=[PaymentMethod.PAYMENT_METHOD_CARD], metadata={"a": "b"}
    )
    message.amount.amount_minor, message.amount.currency = 15000, "BRL"
    message.payer.address.city, message.payer.address.postal_code = "São Paulo", "01310-100"
    message.expiry.FromSeconds(86_400)
    again, wrong = CreatePaymentRequest(), list[Violation]()
    fill(again, to_json(message), wrong)
    assert (again, wrong) == (message, [])
