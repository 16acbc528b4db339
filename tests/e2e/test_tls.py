"""The whole system with mutual TLS between its processes, as `make up` sets it up, on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from launch.certificates import on_this_machine, write
from launch.demo import Demo, play
from launch.system import System
from tests.e2e.whole import Whole
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

SERVICES = ("payments", "email", "sms")
CALLERS = "gateway:read+send+events+forward:san=gateway,clinic:read+send:san=clinic"


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    tls = tmp_path / "tls"
    servers = {name: on_this_machine(name) for name in SERVICES}
    write(tls, {**servers, **{name: [x509.DNSName(name)] for name in ("gateway", "clinic", "stranger")}})
    token = hashlib.sha256(b"clinic").hexdigest()
    variables = {"CLINIC_TOKEN": "clinic", "GATEWAY_AUTH_TOKENS": f"clinic:read+send:{token}"}
    for name in (service.upper() for service in SERVICES):
        for what in ("CERT", "KEY"):
            variables[f"{name}_TLS_{what}"] = f"{tls}/{name.lower()}/{what.lower()}.pem"
        variables[f"{name}_TLS_CLIENT_CA"] = f"{tls}/{name.lower()}/ca.pem"
        variables[f"{name}_AUTH_TOKENS"] = f"{CALLERS},clinic:read+send:{token}"
        for what in ("CA", "CERT", "KEY"):
            variables[f"{name}_TARGET_{what}"] = f"{tls}/gateway/{what.lower()}.pem"
            variables[f"CLINIC_{what}"] = f"{tls}/clinic/{what.lower()}.pem"
    return variables


async def test_the_story_is_played_with_every_call_over_mutual_tls(given: dict[str, str], tmp_path: Path) -> None:
    system = Whole(tmp_path, given)
    try:
        system.up()
        assert sorted(name for name in system.running if system.is_up(name)) == sorted(system.running)
        await play(system, Demo())
        status, body = await system.ask("GET", "/v1/status", token="clinic")
        async with grpc.aio.insecure_channel(system.settings["SMS_LISTEN"]) as channel:
            request = sms_pb2.GetSmsRequest(sms_id="sms_1")
            plain = await sms_pb2_grpc.SmsServiceStub(channel).GetSms(request, timeout=3).code()
        stranger = System({**system.settings, **{
            f"CLINIC_{what}": system.settings[f"CLINIC_{what}"].replace("/clinic/", "/stranger/")
            for what in ("CA", "CERT", "KEY")
        }}, tmp_path)  # fmt: skip
        async with stranger.channel("sms") as channel:
            unknown = await sms_pb2_grpc.SmsServiceStub(channel).GetSms(request, timeout=3).code()
    finally:
        system.down()

    assert status == 200
    assert {name: body[name]["status"] for name in SERVICES} == dict.fromkeys(SERVICES, "SERVING")
    assert all(set(body[name]["providers"].values()) == {"CLOSED"} for name in SERVICES)
    assert plain is grpc.StatusCode.UNAVAILABLE
    assert unknown is grpc.StatusCode.UNAUTHENTICATED
