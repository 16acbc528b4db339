"""Messages belong to their caller: over gRPC, and over HTTP through the gateway, on both channels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from pydantic import SecretStr

from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import Service, listening
from services.chassis.settings import Address, ProcessSettings
from services.email import __main__ as email_service
from services.email.settings import Settings as EmailSettings
from services.messaging.channel import Channel as Parts
from services.sms import __main__ as sms_service
from services.sms.settings import Settings as SmsSettings
from tests.fakes.gateway import RunningGateway, running_gateway
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc


def entry(name: str, scopes: str) -> str:
    """The caller's token is its name."""
    return f"{name}:{scopes}:{hashlib.sha256(name.encode()).hexdigest()}"


CALLERS = [entry("clinic", "read+send"), entry("lab", "read+send"), entry("auditor", "read+send+admin")]
TOKENS = ",".join([*CALLERS, entry("gateway", "read+send+events+forward")])
START = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)


CLINIC = {"authorization": "Bearer clinic"}


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Channel:
    """One channel's service, which hands nothing over: what it stores can be canceled."""

    name: str
    target: str
    stub: Any
    contract: Any
    recipient: Callable[[], Any]

    @property
    def field(self) -> str:
        return f"{self.name}_id"

    def path(self, id: str) -> str:
        return f"/v1/{'emails' if self.name == 'email' else 'sms'}/{id}"

    def confirmation(self, key: str, appointment_id: str = "apt-1") -> Any:
        about = common.Appointment(appointment_id=appointment_id, patient_name="Ana")
        about.start_time.FromDatetime(START)
        return self.contract.SendAppointmentConfirmationRequest(
            idempotency_key=key, recipient=self.recipient(), appointment=about
        )

    async def send(self, token: str, key: str = "k") -> str:
        answer = await self.stub.SendAppointmentConfirmation(self.confirmation(key), metadata=bearer(token))
        return str(getattr(getattr(answer, self.name), self.field))

    async def seen(self, token: str, id: str) -> str:
        """Return the status that a caller reads, or the reason of a refusal."""
        request = getattr(self.contract, f"Get{self.name.title()}Request")(**{self.field: id})
        get = getattr(self.stub, f"Get{self.name.title()}")
        try:
            message = getattr(await get(request, metadata=bearer(token)), self.name)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return common.MessageStatus.Name(message.status).removeprefix("MESSAGE_STATUS_")

    async def cancel(self, token: str, **reference: str) -> tuple[int, int] | str:
        name = {"email": "CancelEmails", "sms": "CancelSms"}[self.name]
        request = getattr(self.contract, f"{name}Request")(**reference)
        try:
            answer = await getattr(self.stub, name)(request, metadata=bearer(token))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return answer.canceled_count, answer.too_late_count


LISTEN = {"listen": "127.0.0.1:0", "operations_listen": "127.0.0.1:0", "auth_tokens": TOKENS}
EMAIL = {"sendgrid_api_key": "SG.test", "sendgrid_api_base": "http://127.0.0.1:9", "from_email": "a@topsmile.example"}
SMS = {
    "twilio_account_sid": "AC" + "0" * 32, "twilio_auth_token": "token", "twilio_phone_number": "+15005550006",
    "twilio_api_base": "http://127.0.0.1:9", "sms_pepper": "a pepper of sixteen",
}  # fmt: skip


@asynccontextmanager
async def serving(settings: ProcessSettings, parts: Parts, services: list[Service]) -> AsyncIterator[Address]:
    readiness = Readiness(parts.database)
    async with listening(settings, readiness, services) as address, readiness.monitored():
        yield address


@asynccontextmanager
async def email(database_url: str) -> AsyncIterator[Channel]:
    settings = EmailSettings.model_validate({**LISTEN, **EMAIL, "database_url": database_url})
    async with (
        email_service.assembled(settings) as parts,
        serving(settings, parts, email_service.rpc_services(parts)) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        stub = email_pb2_grpc.EmailServiceStub(channel)
        yield Channel("email", str(address), stub, email_pb2, lambda: email_pb2.Recipient(address="ana@example.com"))


@asynccontextmanager
async def sms(database_url: str) -> AsyncIterator[Channel]:
    settings = SmsSettings.model_validate({**LISTEN, **SMS, "database_url": database_url})
    async with (
        sms_service.assembled(settings) as parts,
        serving(settings, parts, sms_service.rpc_services(parts, settings)) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        yield Channel("sms", str(address), sms_pb2_grpc.SmsServiceStub(channel), sms_pb2, lambda: "+5511912345678")


@pytest.fixture(params=[email, sms], ids=["email", "sms"])
async def channel(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Channel]:
    async with request.param(database_url) as running:
        yield running


@pytest.mark.parametrize(("token", "expected"), [("clinic", "QUEUED"), ("lab", "NOT_FOUND"), ("auditor", "QUEUED")])
async def test_message_of_another_caller_is_not_found(channel: Channel, token: str, expected: str) -> None:
    id = await channel.send("clinic")

    assert await channel.seen(token, id) == expected


@pytest.mark.parametrize(("token", "expected"), [("clinic", (1, 0)), ("lab", "NOT_FOUND"), ("auditor", (1, 0))])
async def test_message_of_another_caller_is_not_canceled_by_its_id(
    channel: Channel, token: str, expected: object
) -> None:
    id = await channel.send("clinic")

    assert await channel.cancel(token, **{channel.field: id}) == expected
    assert await channel.seen("clinic", id) == ("QUEUED" if expected == "NOT_FOUND" else "CANCELED")


@pytest.mark.parametrize(
    ("token", "count", "left"),
    [("clinic", 1, {"lab"}), ("lab", 1, {"clinic"}), ("auditor", 2, set()), ("gateway", 0, {"clinic", "lab"})],
)
async def test_cancelling_an_appointment_cancels_the_caller_s_own_messages(
    channel: Channel, token: str, count: int, left: set[str]
) -> None:
    ids = {owner: await channel.send(owner) for owner in ("clinic", "lab")}

    assert await channel.cancel(token, appointment_id="apt-1") == (count, 0)
    assert {owner for owner, id in ids.items() if await channel.seen(owner, id) == "QUEUED"} == left


async def test_same_key_of_two_callers_makes_two_messages(channel: Channel) -> None:
    ids = {await channel.send(owner, "same") for owner in ("clinic", "lab", "auditor", "clinic")}

    assert len(ids) == 3


@asynccontextmanager
async def gateway_of(channel: Channel, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    target: dict[str, Any] = {f"{channel.name}_target": channel.target}
    async with running_gateway(
        f"sqlite:///{tmp_path}/gateway.db",
        working=False,
        auth_tokens=",".join([*CALLERS, entry("reader", "read"), entry("sender", "send")]),
        gateway_token=SecretStr("gateway"),
        **target,
    ) as gateway:
        yield gateway


async def test_message_read_over_http_is_the_contract_s_json(channel: Channel, tmp_path: Path) -> None:
    id = await channel.send("clinic")
    request = getattr(channel.contract, f"Get{channel.name.title()}Request")(**{channel.field: id})
    async with gateway_of(channel, tmp_path) as gateway:
        status, found = await gateway.get(channel.path(id), CLINIC)

    response = await getattr(channel.stub, f"Get{channel.name.title()}")(request, metadata=bearer("clinic"))
    assert (status, ParseDict(found, type(response)())) == (200, response)
    message = found[channel.name]
    assert (message[channel.field], message["status"]) == (id, "MESSAGE_STATUS_QUEUED")
    assert (message["appointment_id"], message["provider_message_id"]) == ("apt-1", "")


async def test_message_read_over_http_by_an_unknown_id_is_not_found(channel: Channel, tmp_path: Path) -> None:
    prefix = (await channel.send("clinic"))[:4]
    ids = ["x", "pay_1", "%00", prefix, f"{prefix}9", f"{prefix}%ff", f"{prefix}%0d%0a"]
    async with gateway_of(channel, tmp_path) as gateway:
        for id in ids:
            status, problem = await gateway.get(channel.path(id), CLINIC)
            assert (id, status, problem["reason"]) == (id, 404, "NOT_FOUND")


async def test_message_read_over_http_by_a_malformed_id_names_it(channel: Channel, tmp_path: Path) -> None:
    prefix = (await channel.send("clinic"))[:4]
    async with gateway_of(channel, tmp_path) as gateway:
        for id in [f"{prefix}%00", f"{prefix}9%07", prefix + "x" * 9000]:
            status, problem = await gateway.get(channel.path(id), CLINIC)
            assert (status, [error["field"] for error in problem["errors"]]) == (422, [channel.field])


async def test_message_sent_over_http_belongs_to_the_gateway_s_caller(channel: Channel, tmp_path: Path) -> None:
    address = {"email": "ana@example.com"} if channel.name == "email" else {"phone": "+5511912345678"}
    body = {"patient": {"name": "Ana", **address}, "appointment": {"start_time": START.isoformat()}}
    ids: dict[str, str] = {}
    async with gateway_of(channel, tmp_path) as gateway:
        for owner in ("clinic", "lab"):
            headers = {"authorization": f"Bearer {owner}", "idempotency-key": "k-1"}
            path = "/v1/appointments/apt-1/confirmation"
            status, answer = await gateway.post(path, json.dumps(body).encode(), headers)
            assert status == 200, answer
            ids[owner] = answer[channel.name][channel.field]

    assert [await channel.seen(token, ids["clinic"]) for token in ("clinic", "lab", "gateway", "auditor")] == [
        "QUEUED", "NOT_FOUND", "NOT_FOUND", "QUEUED"
    ]  # fmt: skip
    assert await channel.cancel("lab", appointment_id="apt-1") == (1, 0)
    assert await channel.seen("clinic", ids["clinic"]) == "QUEUED"
    assert await channel.seen("lab", ids["lab"]) == "CANCELED"


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        ("clinic", 200, None),
        ("lab", 404, "NOT_FOUND"),
        ("reader", 404, "NOT_FOUND"),
        ("sender", 403, "PERMISSION_DENIED"),
        ("stranger", 401, "UNAUTHENTICATED"),
    ],
)
async def test_message_read_over_http_is_the_caller_s_own(
    channel: Channel, tmp_path: Path, token: str, status: int, reason: str | None
) -> None:
    id = await channel.send("clinic")
    async with gateway_of(channel, tmp_path) as gateway:
        headers = {"authorization": f"Bearer {token}"}
        found, answer = await gateway.get(channel.path(id), headers)
        strange = [
            (await gateway.get(channel.path(other), headers))[0] for other in ("pay_1", "%00", f"{id}%00", "x" * 500)
        ]

    assert (found, answer.get("reason")) == (status, reason)
    assert set(strange) <= ({404, 422} if status in {200, 404} else {status})
    if found == 200:
        assert (answer[channel.name][channel.field], answer[channel.name]["status"]) == (id, "MESSAGE_STATUS_QUEUED")
