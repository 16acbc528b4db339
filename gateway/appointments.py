"""Appointments' confirmations and reminders: one request, a leg to email and a leg to sms, side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.bodies import fill, idempotency_key, json_object
from gateway.clients import Clients, Service
from services.chassis.errors import InvalidRequest, ServiceError
from services.chassis.http import problems
from services.chassis.rpc.validation import normalized, printable
from services.chassis.violations import Rule, Violation
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.sms.v1 import sms_pb2

#: The services' name of a field, and the name in our HTTP API.
NAMES = {
    "recipient": "patient.phone",
    "recipient.address": "patient.email",
    "recipient.name": "patient.name",
    "appointment.patient_name": "patient.name",
    "appointment.appointment_id": "id",
    "idempotency_key": "Idempotency-Key",
}
OURS = {"idempotency_key", "recipient"}

Leg = Callable[[], Awaitable[dict[str, Any]]]


class Appointments:
    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def confirm(self, request: Request) -> Response:
        stubs = self._clients.email_stub, self._clients.sms_stub
        mail, text = email_pb2.SendAppointmentConfirmationRequest(), sms_pb2.SendAppointmentConfirmationRequest()
        await self._read(request, mail, text)
        return await self._fan_out(
            self._leg(self._clients.email, stubs[0].SendAppointmentConfirmation, mail, mail.recipient.address),
            self._leg(self._clients.sms, stubs[1].SendAppointmentConfirmation, text, text.recipient),
        )

    async def remind(self, request: Request) -> Response:
        stubs = self._clients.email_stub, self._clients.sms_stub
        mail, text = email_pb2.SendAppointmentReminderRequest(), sms_pb2.SendAppointmentReminderRequest()
        await self._read(request, mail, text)
        return await self._fan_out(
            self._leg(self._clients.email, stubs[0].SendAppointmentReminder, mail, mail.recipient.address),
            self._leg(self._clients.sms, stubs[1].SendAppointmentReminder, text, text.recipient),
        )

    async def _read(self, request: Request, mail: Any, text: Any) -> None:
        """Fill both requests from one body; raises InvalidRequest with everything that is wrong."""
        wrong: list[Violation] = []
        key = idempotency_key(request, wrong)
        given = await json_object(request)
        patient = _patient(given.pop("patient", None), wrong)
        fill(mail, given, wrong, without=OURS)
        fill(text, given, [], without=OURS)  # the contracts spell appointments alike: what is wrong is wrong in both
        for leg in (mail, text):
            leg.idempotency_key = key
            _place(leg.appointment, "appointment_id", request.path_params["id"], wrong)
            _place(leg.appointment, "patient_name", patient["name"], wrong)
        mail.recipient.address, mail.recipient.name = patient["email"], patient["name"]
        text.recipient = patient["phone"]
        if wrong:
            raise InvalidRequest(list(dict.fromkeys(wrong)))

    def _leg(self, service: Service, method: Any, request: Message, address: str) -> Leg | None:
        async def send() -> dict[str, Any]:
            answered = await service.call(method, request)
            message = getattr(answered, service.name)
            status = common.MessageStatus.Name(message.status)
            return {"status": status, f"{service.name}_id": getattr(message, f"{service.name}_id")}

        return send if address else None

    async def _fan_out(self, mail: Leg | None, text: Leg | None) -> Response:
        if mail is None and text is None:
            raise InvalidRequest([Rule.NO_RECIPIENT.at("patient")])
        outcomes = await asyncio.gather(_outcome(mail), _outcome(text))
        answers = {name: body for name, (body, _) in zip(("email", "sms"), outcomes, strict=True)}
        taken = [body for body, _ in outcomes if "error" not in body and body["status"] != "SKIPPED"]
        errors = [error for _, error in outcomes if error is not None]
        return JSONResponse(answers, *_verdict(taken, errors))


def _patient(given: object, wrong: list[Violation]) -> Mapping[str, str]:
    patient = {"name": "", "email": "", "phone": ""}
    if not isinstance(given, dict):
        missing = Rule.REQUIRED.at("patient") if given is None else Rule.WRONG_TYPE.at("patient", form="an object")
        wrong.append(missing)
        return patient
    for name, value in given.items():
        if name not in patient:
            wrong.append(Rule.UNKNOWN_FIELD.at(f"patient.{name}"))
        elif isinstance(value, str):
            patient[name] = normalized(value)
            if not printable(patient[name]):
                wrong.append(Rule.NOT_PRINTABLE.at(f"patient.{name}"))
        elif value is not None:
            wrong.append(Rule.WRONG_TYPE.at(f"patient.{name}", form="a text"))
    return patient


def _place(appointment: Any, field: str, value: str, wrong: list[Violation]) -> None:
    """Set what has its own place in the request; said there and here, it has to be the same."""
    if normalized(getattr(appointment, field)) not in {"", normalized(value)}:
        wrong.append(Rule.DIFFERENT.at(f"appointment.{field}", other=NAMES[f"appointment.{field}"]))
    setattr(appointment, field, value)


async def _outcome(leg: Leg | None) -> tuple[dict[str, Any], ServiceError | None]:
    if leg is None:
        return {"status": "SKIPPED"}, None
    try:
        return await leg(), None
    except ServiceError as error:
        error.violations = tuple(each._replace(field=NAMES.get(each.field, each.field)) for each in error.violations)
        return {"error": problems.problem(error)}, error


def _verdict(taken: Sequence[object], errors: Sequence[ServiceError]) -> tuple[int, Mapping[str, str]]:
    """200: all took it. 207: some did. 503: none did, and trying again may help. 422: it does not."""
    if taken:
        return (207 if errors else 200), {}
    waits = [seconds for error in errors if (seconds := problems.retry_after(error)) is not None]
    return (503, {"retry-after": str(max(waits))}) if waits else (422, {})
