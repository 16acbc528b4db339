"""What people copy out of web pages and documents is taken over HTTP and over gRPC, and means the same in both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.e2e.whole import Whole, eventually, whole
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

START = int(time.time()) + 30 * 86_400
TYPED = {
    "name": "Ana Souza",
    "email": "ana@xn--clnica-4va.example",
    "phone": "(11) 91234-5678",
    "notes": "Jejum de 8 h\nTraga RG 👩\u200d⚕️",
}
COPIES = {
    "a web page": {
        "name": "Ana\u00a0Souza\u200b",
        "email": "ana@clínica.example\u00a0",
        "phone": "(11)\u00a091234-5678",
        "notes": "Jejum de 8\u00a0h\r\nTraga RG 👩\u200d⚕️",
    },
    "a word processor": {
        "name": "Ana Sou\u00adza",
        "email": "\ufeffana@clínica.example",
        "phone": "\u200e(11) 91234-5678",
        "notes": "Jejum de 8 h\u2028Traga\tRG 👩\u200d⚕️",
    },
    "a chat": {
        "name": "\u2068Ana\u2009Souza\u2069",
        "email": "ana@cli\u0301nica.example",
        "phone": "\u202a(11) 91234-5678\u202c",
        "notes": "Jejum de 8 h\rTraga RG 👩\u200d⚕️\n",
    },
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with whole(tmp_path_factory.mktemp("copied")) as running:
        yield running


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
async def test_copied_text_over_http_is_sent_as_typed(
    system: Whole, copied: dict[str, str], request: pytest.FixtureRequest
) -> None:
    key = request.node.callspec.id

    async def confirm(patient: dict[str, str]) -> tuple[int, Any]:
        body = {
            "patient": {name: patient[name] for name in ("name", "email", "phone")},
            "appointment": {"start_time": f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(START))}"},
        }
        body["appointment"]["notes"] = patient["notes"]
        return await system.ask("POST", f"/v1/appointments/{key.replace(' ', '-')}/confirmation", body, key=key)

    status, first = await confirm(copied)
    repeated, again = await confirm(TYPED)

    assert (status, repeated) == (200, 200), (first, again)
    assert (first["email"]["email_id"], first["sms"]["sms_id"]) == (again["email"]["email_id"], again["sms"]["sms_id"])

    async def mailed() -> list[Any]:
        return [
            entry["request"]
            for entry in await system.ledger("sendgrid")
            if entry["request"]["custom_args"]["email_id"] == first["email"]["email_id"]
        ]

    (mail,) = await eventually(mailed)
    assert mail["personalizations"] == [{"to": [{"email": TYPED["email"], "name": TYPED["name"]}]}]
    assert TYPED["notes"] in mail["content"][0]["value"].replace("\r\n", "\n")


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
async def test_copied_text_over_grpc_repeats_the_key_of_the_typed_one(
    system: Whole, copied: dict[str, str], request: pytest.FixtureRequest
) -> None:
    def confirmation(patient: dict[str, str]) -> email_pb2.SendAppointmentConfirmationRequest:
        message = email_pb2.SendAppointmentConfirmationRequest(idempotency_key=request.node.name)
        message.recipient.address, message.recipient.name = patient["email"], patient["name"]
        message.appointment.appointment_id, message.appointment.patient_name = "apt", patient["name"]
        message.appointment.notes = patient["notes"]
        message.appointment.start_time.seconds = START
        return message

    def text(patient: dict[str, str]) -> sms_pb2.SendSmsRequest:
        body = patient["notes"].replace("👩\u200d⚕️", "")
        return sms_pb2.SendSmsRequest(idempotency_key=request.node.name, recipient=patient["phone"], body=body)

    async with (
        grpc.aio.insecure_channel(system.settings["EMAIL_LISTEN"]) as to_email,
        grpc.aio.insecure_channel(system.settings["SMS_LISTEN"]) as to_sms,
    ):
        email, sms = email_pb2_grpc.EmailServiceStub(to_email), sms_pb2_grpc.SmsServiceStub(to_sms)
        mails = [
            (await email.SendAppointmentConfirmation(confirmation(patient))).email.email_id
            for patient in (copied, TYPED)
        ]
        texts = [(await sms.SendSms(text(patient))).sms.sms_id for patient in (copied, TYPED)]

    assert mails[0] == mails[1]
    assert texts[0] == texts[1]
