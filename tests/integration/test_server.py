"""Real processes that start, receive signals and stop."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from cryptography import x509
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from launch.certificates import Authority, Issued
from services.chassis.errors import Unavailable
from services.chassis.lifecycle import GRACE
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import Service, listening
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Settings, Stub, add_echo
from tests.processes import BARE, ROOT, process

MODULE = "tests.fakes.echo_service"
ANYWHERE = {"ECHO_LISTEN": "127.0.0.1:0", "ECHO_OPERATIONS_LISTEN": "127.0.0.1:0"}

SERVED_BY = [("grpc.ssl_target_name_override", "sms.clinic.example")]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def refusal(**settings: str) -> tuple[int, str]:
    """Start a process that must fail, and return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", MODULE],
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **ANYWHERE, **settings},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def test_sigterm_lets_running_calls_finish_and_refuses_new_ones() -> None:
    with process(MODULE, ANYWHERE) as running:
        async with (
            grpc.aio.insecure_channel(running.listening["grpc"]) as channel,
            grpc.aio.insecure_channel(running.listening["grpc"]) as watching,
        ):
            watch = aiter(health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest(service=NAME)))
            statuses = [(await anext(watch)).status]
            slow = asyncio.ensure_future(Stub(channel).SendEcho(StringValue(value="1")))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            ended = asyncio.ensure_future(asyncio.to_thread(running.end, signal.SIGTERM))
            statuses += [answer.status async for answer in watch]
            late = await Stub(channel).SendEcho(StringValue(value="0")).code()

            assert json.loads((await slow).value)["caller"] == "local"
            assert await ended == 0

    assert statuses == [SERVING, NOT_SERVING]
    assert late is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 4  # an open health watch does not hold it for the whole grace
    assert [json.loads(line)["event"] for line in running.lines if "draining" in line or "stopped" in line][-1] == (
        "stopped"
    )


def test_idle_process_stops_at_once_without_errors() -> None:
    with process(MODULE, ANYWHERE) as running:
        started = time.monotonic()

        assert running.end(signal.SIGINT) == 0

    assert time.monotonic() - started < GRACE / 2
    assert [line for line in running.lines if not line.startswith("{")] == []


def test_failed_worker_ends_the_process_without_logging_its_text() -> None:
    code, output = refusal(ECHO_WORKER="die")

    assert code == 1
    assert "worker.ended" in output
    assert "RuntimeError" in output
    assert "5511912345678" not in output


@pytest.mark.parametrize("name", ["ECHO_LISTEN", "ECHO_OPERATIONS_LISTEN"])
def test_port_in_use_is_reported(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = refusal(**{name: f"127.0.0.1:{port}"})

    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_listener_off_loopback_without_tokens_is_refused_with_the_variables_to_set() -> None:
    code, output = refusal(ECHO_LISTEN="0.0.0.0:0")

    assert code == 2
    assert "ECHO_AUTH_TOKENS: must be set" in output
    assert "ECHO_LISTEN=0.0.0.0:0" in output


@asynccontextmanager
async def answered(store: FakeStore, **settings: str) -> AsyncIterator[tuple[grpc.aio.Channel, Readiness]]:
    readiness = Readiness(store)
    chosen = Settings.model_validate({"listen": "127.0.0.1:0", **settings})
    async with (
        readiness.monitored(),
        listening(chosen, readiness, [Service(NAME, add_echo, EchoServicer())]) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        yield channel, readiness


async def test_health_follows_the_database() -> None:
    store = FakeStore()
    async with answered(store) as (channel, readiness):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        statuses = [(await watch.read()).status]
        for failure in (Unavailable("disk full", reason="STORE_FULL"), None):
            store.fail_with = failure
            await asyncio.gather(readiness.check(), return_exceptions=True)
            statuses.append((await watch.read()).status)
        named = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
        unknown = await health.Check(health_pb2.HealthCheckRequest(service="no.Such")).code()
        foreign = await health.Watch(health_pb2.HealthCheckRequest(service="no.Such")).read()

    assert statuses == [SERVING, NOT_SERVING, SERVING]
    assert (named.status, unknown, foreign.status) == (SERVING, grpc.StatusCode.NOT_FOUND, SERVICE_UNKNOWN)


async def test_reflection_lists_services() -> None:
    for stub, path in (
        (reflection_pb2_grpc.ServerReflectionStub, "v1alpha"),
        (VersionOne, "v1"),
    ):
        async with answered(FakeStore()) as (channel, _):
            call = stub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
            listed = await call.read()
            await call.done_writing()

        assert {service.name for service in listed.list_services_response.service} == {
            NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
            "grpc.reflection.v1.ServerReflection",
        }, path  # fmt: skip


class VersionOne:
    """Call version 1 by hand: grpcio-reflection has a stub of 1alpha only, with the same messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.ServerReflectionInfo: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )


SYMBOLS = {
    "topsmile.sms.v1.SmsService.SendSms": "topsmile/sms/v1/sms.proto",
    "topsmile.payments.v1.PaymentAdminService.ApplyEvents": "topsmile/payments/v1/payments.proto",
    "topsmile.email.v1.EmailService": "topsmile/email/v1/email.proto",
    "topsmile.common.v1.Money.currency": "topsmile/common/v1/common.proto",
    "topsmile.common.v1.ERROR_REASON_SHEDDING": "topsmile/common/v1/common.proto",
    "topsmile.common.v1.ErrorReason.ERROR_REASON_SHEDDING": "topsmile/common/v1/common.proto",
    "topsmile.sms.v1.GetSmsRequest.sms_id": "topsmile/sms/v1/sms.proto",
    "topsmile.sms.v1.GetSmsRequest": "topsmile/sms/v1/sms.proto",
    "topsmile.sms.v1.CancelSmsRequest.reference": "topsmile/sms/v1/sms.proto",
    "grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING": "grpc_health/v1/health.proto",
    "google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
    "google.rpc.BadRequest.FieldViolation": "google/rpc/error_details.proto",
    "grpc.health.v1.Health.Check": "grpc_health/v1/health.proto",
    "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": "grpc_reflection/v1/reflection.proto",
    "grpc.reflection.v1alpha.ServerReflection": "grpc_reflection/v1alpha/reflection.proto",
}


@pytest.mark.parametrize("symbol", [*SYMBOLS, "no.Such", "topsmile.sms.v1.SmsService.NoMethod", "a..b", "", "."])
async def test_reflection_finds_services_methods_messages_fields_and_values_with_their_comments(symbol: str) -> None:
    async with answered(FakeStore()) as (channel, _):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        answer = await call.read()
        await call.done_writing()

    found = list(map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto))
    if symbol not in SYMBOLS:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        return
    assert found[0].name == SYMBOLS[symbol]
    assert {name for file in found for name in file.dependency} <= {file.name for file in found}
    if symbol.startswith("topsmile."):
        assert any(location.leading_comments for location in found[0].source_code_info.location)


async def test_unknown_method_is_unimplemented() -> None:
    async with answered(FakeStore()) as (channel, _):
        nothing: Any = channel.unary_unary(f"/{NAME}/Nothing")

        assert await nothing(b"").code() is grpc.StatusCode.UNIMPLEMENTED


async def test_message_over_four_mebibytes_is_refused() -> None:
    async with answered(FakeStore()) as (channel, _):
        call = Stub(channel).SendEcho(StringValue(value="0" * (5 << 20)))

        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def certified(folder: Path, authority: Authority, tokens: str) -> Settings:
    own = authority.issue("sms", [x509.DNSName("sms.clinic.example")])
    for file, content in (("cert", own.certificate), ("key", own.key), ("ca", authority.certificate)):
        (folder / f"{file}.pem").write_bytes(content)
    return Settings.model_validate({
        "listen": "127.0.0.1:0",
        "tls_cert": folder / "cert.pem",
        "tls_key": folder / "key.pem",
        "tls_client_ca": folder / "ca.pem",
        "auth_tokens": tokens,
    })  # fmt: skip


def credentials(authority: Authority, client: Issued | None = None) -> grpc.ChannelCredentials:
    pair = (client.key, client.certificate) if client else ()
    return grpc.ssl_channel_credentials(authority.certificate, *pair)


CERTIFIED = "gateway:read+send+forward:san=spiffe://clinic/gateway,reader:read:san=reader.clinic.example"


@pytest.mark.parametrize(
    ("names", "method", "code"),
    [
        ([x509.UniformResourceIdentifier("spiffe://clinic/gateway")], "SendEcho", "OK"),
        ([x509.DNSName("reader.clinic.example")], "GetEcho", "OK"),
        ([x509.DNSName("reader.clinic.example")], "SendEcho", "PERMISSION_DENIED"),
        ([x509.DNSName("other.example"), x509.DNSName("reader.clinic.example")], "GetEcho", "OK"),
        ([], "GetEcho", "UNAUTHENTICATED"),
        ([x509.DNSName("other.example")], "GetEcho", "UNAUTHENTICATED"),
        ([x509.RFC822Name("reader.clinic.example")], "GetEcho", "UNAUTHENTICATED"),
        ([x509.UniformResourceIdentifier("reader.clinic.example/")], "GetEcho", "UNAUTHENTICATED"),
    ],
)
async def test_certificate_grants_the_scopes_of_its_entry(
    tmp_path: Path, names: list[x509.GeneralName], method: str, code: str
) -> None:
    authority = Authority()
    settings = certified(tmp_path, authority, CERTIFIED)
    known = authority.issue("client", names)
    async with (
        listening(settings, Readiness(FakeStore()), [Service(NAME, add_echo, EchoServicer())]) as address,
        grpc.aio.secure_channel(str(address), credentials(authority, known), SERVED_BY) as channel,
    ):
        call = getattr(Stub(channel), method)(StringValue())

        assert (await call.code()).name == code


async def test_client_without_certificate_of_the_authority_is_disconnected(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    settings = certified(tmp_path, authority, CERTIFIED)
    stranger = other.issue("client", [x509.UniformResourceIdentifier("spiffe://clinic/gateway")])
    codes = []
    async with listening(settings, Readiness(FakeStore()), [Service(NAME, add_echo, EchoServicer())]) as address:
        for client in (None, stranger):
            async with grpc.aio.secure_channel(str(address), credentials(authority, client), SERVED_BY) as channel:
                codes.append(await Stub(channel).GetEcho(StringValue(), timeout=3).code())

    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2


async def test_operations_listener_serves_health_readiness_and_metrics() -> None:
    with process(MODULE, ANYWHERE) as running:
        async with (
            grpc.aio.insecure_channel(running.listening["grpc"]) as channel,
            aiohttp.ClientSession(f"http://{running.listening['operations']}") as http,
        ):
            await Stub(channel).SendEcho(StringValue())
            alive = await (await http.get("/healthz")).json()
            ready = await (await http.get("/readyz")).json()
            metrics = await (await http.get("/metrics")).text()

    assert alive == {"status": "alive"}
    assert ready == {"status": "ready", "provider": "CLOSED", "queues": {}}
    assert f'topsmile_rpc_seconds_count{{code="OK",method="/{NAME}/SendEcho"}} 1.0' in metrics
