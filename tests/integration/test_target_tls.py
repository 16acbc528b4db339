"""TLS between the gateway and a service, and TLS of the operations listener."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from google.protobuf.wrappers_pb2 import StringValue

from gateway.clients import Service as Client
from gateway.settings import Settings as GatewaySettings
from gateway.settings import Target
from launch.certificates import on_this_machine, write
from services.chassis.errors import OutcomeUnknown, ServiceError
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import Service, listening
from services.chassis.settings import Address, load
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Settings, Stub, add_echo
from tests.processes import process

IDENTITIES: Mapping[str, list[x509.GeneralName]] = {
    "echo": on_this_machine("echo.clinic.example"),
    "gateway": [x509.DNSName("gateway.clinic.example")],
    "named": [x509.DNSName("only.clinic.example")],
}
CALLERS = "gateway:read+send+forward:san=gateway.clinic.example"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "tls", IDENTITIES)
    write(tmp_path / "other", IDENTITIES)
    return tmp_path / "tls"


def serving(files: Path, identity: str = "echo") -> dict[str, str]:
    own = files / identity
    return {
        "tls_cert": f"{own}/cert.pem",
        "tls_key": f"{own}/key.pem",
        "tls_client_ca": f"{own}/ca.pem",
        "auth_tokens": CALLERS,
    }


@asynccontextmanager
async def echo_server(settings: Settings, servicer: EchoServicer) -> AsyncIterator[Address]:
    readiness = Readiness(FakeStore())
    async with (
        readiness.monitored(),
        listening(settings, readiness, [Service(NAME, add_echo, servicer)]) as address,
    ):
        yield address


def target(files: Path, address: str, **changes: Any) -> Target:
    own = files / "gateway"
    return Target(address, own / "ca.pem", own / "cert.pem", own / "key.pem")._replace(**changes)


async def ask(client: Client) -> Any:
    try:
        answer = await client.call(Stub(client.channel).SendEcho, StringValue())
    finally:
        await client.channel.close()
    return json.loads(answer.value)


@pytest.mark.parametrize(("identity", "name"), [("echo", ""), ("echo", "localhost"), ("named", "only.clinic.example")])
async def test_service_is_called_over_mutual_tls_by_the_name_in_its_certificate(
    files: Path, identity: str, name: str
) -> None:
    settings = Settings.model_validate({"listen": "127.0.0.1:0", **serving(files, identity)})
    async with echo_server(settings, EchoServicer()) as address:
        known = await ask(Client("echo", target(files, str(address), name=name)))

    assert known["caller"] == "gateway"
    assert known["scopes"] == ["forward", "read", "send"]


@pytest.mark.parametrize(
    ("identity", "change"),
    [
        ("named", {}),
        ("echo", {"name": "other.clinic.example"}),
        ("echo", {"ca": "../other/gateway/ca.pem"}),
        ("echo", {"certificate": None, "key": None}),
        ("echo", {"certificate": "../other/gateway/cert.pem", "key": "../other/gateway/key.pem"}),
        ("echo", {"ca": None}),
    ],
)
async def test_service_with_another_certificate_is_not_called(
    files: Path, identity: str, change: dict[str, str | None]
) -> None:
    changes = {name: files / value if value and name != "name" else value for name, value in change.items()}
    settings = Settings.model_validate({"listen": "127.0.0.1:0", **serving(files, identity)})
    servicer = EchoServicer()
    servicer.fail_with = AssertionError("called")
    async with echo_server(settings, servicer) as address:
        with pytest.raises(ServiceError) as refused:
            await ask(Client("echo", target(files, str(address), **changes)))

    assert type(refused.value) is OutcomeUnknown
    assert refused.value.provider_fault  # a broken call, for the breaker


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_operations_listener_of_a_process_with_certificate_speaks_tls(files: Path, path: str) -> None:
    own = {f"ECHO_{name.upper()}": value for name, value in serving(files).items()}
    verified = ssl.create_default_context(cafile=files / "gateway" / "ca.pem")
    listen = {"ECHO_LISTEN": "127.0.0.1:0", "ECHO_OPERATIONS_LISTEN": "127.0.0.1:0"}
    with process("tests.fakes.echo_service", {**listen, **own}) as running:
        address = running.listening["operations"]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"https://{address}{path}", ssl=verified) as answer:
                status = answer.status
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"http://{address}{path}")

    assert status == 200


SECRETS = {
    "STRIPE_WEBHOOK_SECRET": "whsec_1",
    "TWILIO_AUTH_TOKEN": "t",
    "SENDGRID_WEBHOOK_PUBLIC_KEY": "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpV"
    "KS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g==",
}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"PAYMENTS_TARGET_CERT": "cert.pem", "PAYMENTS_TARGET_KEY": "key.pem"}, {"CERT", "KEY"}),
        ({"PAYMENTS_TARGET_CA": "ca.pem", "PAYMENTS_TARGET_CERT": "cert.pem"}, {"KEY"}),
        ({"PAYMENTS_TARGET_CA": "ca.pem", "PAYMENTS_TARGET_KEY": "key.pem"}, {"KEY"}),
        ({"PAYMENTS_TARGET_NAME": "payments.clinic.example"}, {"NAME"}),
        ({"PAYMENTS_TARGET_CA": "absent.pem"}, {"CA"}),
    ],
)
def test_incomplete_tls_of_a_target_is_refused_by_name(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    named: set[str],
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name, value in given.items():
        monkeypatch.setenv(name, value if name.endswith("_NAME") else str(files / "gateway" / value))
    with pytest.raises(SystemExit):
        load(GatewaySettings)

    lines = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0].removeprefix("PAYMENTS_TARGET_") for line in lines} == named


@pytest.mark.parametrize("token", ["two words", "ação", "a\nb", "a\tb", "\x7f"])
def test_token_that_metadata_cannot_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    for name, value in {**SECRETS, "GATEWAY_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        load(GatewaySettings)

    output = capsys.readouterr().err
    assert output.startswith("GATEWAY_TOKEN: must be")
    assert token not in output
