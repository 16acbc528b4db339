"""The requests of both channels, read into messages."""

from __future__ import annotations

from typing import Any

import pytest

from services.brazil.phones import mobile
from services.chassis.errors import InvalidRequest
from services.email import requests as email_requests
from services.sms import requests as sms_requests
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.sms.v1 import sms_pb2


def read(contract: Any, name: str, appointment: common.Appointment) -> None:
    request = getattr(contract, name)(idempotency_key="k", appointment=appointment)
    if contract is email_pb2:
        request.recipient.address = "ana@example.com"
        email_requests.accept(request)
    else:
        request.recipient = "+5511912345678"
        sms_requests.about_appointment(request, mobile)


@pytest.mark.parametrize("year", [None, 1, 1969, 1999, 2200, 9999])
@pytest.mark.parametrize("name", ["SendAppointmentConfirmationRequest", "SendAppointmentReminderRequest"])
@pytest.mark.parametrize("contract", [email_pb2, sms_pb2])
def test_appointment_without_a_usable_start_time_is_refused_by_field(
    contract: Any, name: str, year: int | None
) -> None:
    appointment = common.Appointment(appointment_id="apt-1", patient_name="Ana")
    if year is not None:
        appointment.start_time.FromJsonString(f"{year:04}-01-01T00:00:00Z")

    with pytest.raises(InvalidRequest) as refused:
        read(contract, name, appointment)
    assert [violation.field for violation in refused.value.violations] == ["appointment.start_time"]
