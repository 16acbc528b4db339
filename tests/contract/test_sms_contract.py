"""Every RPC of the contract is there and answers its own type."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.brazil.phones import mobile
from services.chassis.database.connect import connect
from services.chassis.rpc.idempotency import Fingerprints
from services.messaging.outbox import Outbox
from services.messaging.store import SCHEMA, Store
from services.sms.__main__ import MIGRATIONS
from services.sms.pepper import Pepper
from services.sms.servicer import SmsAdminServicer, SmsServicer
from services.sms.settings import Settings
from services.sms.twilio_provider import twilio
from topsmile.common.v1 import common_pb2 as common
from topsmile.sms.v1 import sms_pb2 as pb


class Bridge:
    """Lets a testing server, which runs handlers in threads, call coroutines on the test's loop."""

    def __init__(self, servicer: object, loop: asyncio.AbstractEventLoop) -> None:
        self._servicer, self._loop = servicer, loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._servicer, name)
        return lambda request, rpc: asyncio.run_coroutine_threadsafe(method(request, rpc), self._loop).result(10)


def requests() -> dict[str, Message]:
    to = "+5511912345678"
    about = common.Appointment(appointment_id="apt-1", patient_name="Ana")
    about.start_time.FromJsonString("2036-03-12T17:30:00Z")
    paid = common.PaymentSummary(payment_id="pay_1", amount=common.Money(amount_minor=100, currency="BRL"))
    paid.paid_time.FromJsonString("2026-03-12T17:30:00Z")
    return {
        "SendSms": pb.SendSmsRequest(idempotency_key="k", recipient=to, body="oi"),
        "SendAppointmentConfirmation": pb.SendAppointmentConfirmationRequest(
            idempotency_key="c", recipient=to, appointment=about
        ),
        "SendAppointmentReminder": pb.SendAppointmentReminderRequest(
            idempotency_key="r", recipient=to, appointment=about
        ),
        "SendVerificationCode": pb.SendVerificationCodeRequest(idempotency_key="v", recipient=to, code="123456"),
        "SendPaymentNotice": pb.SendPaymentNoticeRequest(
            idempotency_key="p", recipient=to, kind=common.PAYMENT_NOTICE_KIND_SUCCEEDED, payment=paid
        ),
        "CancelSms": pb.CancelSmsRequest(appointment_id="apt-1"),
        "ApplyEvents": pb.ApplyEventsRequest(
            events=[common.ProviderEvent(event_id="e1", body=b"MessageSid=SM1&MessageStatus=sent")]
        ),
    }


def request_of(kind: Descriptor, sms_id: str) -> Message:
    """Return a request that names the text, or its appointment."""
    known = {"sms_id": sms_id, "appointment_id": "apt-1"}
    return GetMessageClass(kind)(**{name: value for name, value in known.items() if name in kind.fields_by_name})


async def test_every_rpc_of_the_contract_answers_its_type(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    services = pb.DESCRIPTOR.services_by_name
    settings = Settings.model_validate(
        {
            "twilio_account_sid": "AC1",
            "twilio_auth_token": "token",
            "twilio_phone_number": "+15005550006",
            "sms_pepper": "a pepper of sixteen",
        }
    )
    async with (
        connect(f"sqlite:///{tmp_path}/sms.db", SCHEMA, MIGRATIONS) as database,
        twilio(settings) as provider,
    ):
        outbox = Outbox(database, Store("sms", "sms"), Fingerprints(), [provider], lambda: None)
        servicer = SmsServicer(outbox, Pepper("a pepper of sixteen"), mobile)
        server = grpc_testing.server_from_dictionary(
            {
                services["SmsService"]: Bridge(servicer, loop),
                services["SmsAdminService"]: Bridge(SmsAdminServicer(outbox), loop),
            },
            grpc_testing.strict_real_time(),
        )
        requests_by_method, sms_id = requests(), ""
        for service in services.values():
            for method in service.methods:
                request = requests_by_method.get(method.name) or request_of(method.input_type, sms_id)
                call = server.invoke_unary_unary(method, (), request, None)
                answer, _, code, _ = await asyncio.to_thread(call.termination)
                assert (method.name, code) == (method.name, grpc.StatusCode.OK)
                assert answer.DESCRIPTOR is method.output_type
                sms_id = sms_id or answer.sms.sms_id
