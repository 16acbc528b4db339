"""Processes that are really started, signalled and stopped."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
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
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.chassis.errors import Unavailable
from services.chassis.health import Readiness
from services.chassis.lifecycle import GRACE
from services.chassis.server import Service, answering
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Settings, Stub, add_echo
from tests.processes import BARE, ROOT, process

MODULE = "tests.fakes.echo_service"
ANYWHERE = {"ECHO_LISTEN": "127.0.0.1:0", "ECHO_OPERATIONS_LISTEN": "127.0.0.1:0"}

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def refusal(**settings: str) -> tuple[int, str]:
    """Start a process that is expected not to come up: its exit code and what it says."""
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
            told = [(await anext(watch)).status]
            slow = asyncio.ensure_future(Stub(channel).SendEcho(StringValue(value="1")))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            ended = asyncio.ensure_future(asyncio.to_thread(running.end, signal.SIGTERM))
            told += [answer.status async for answer in watch]
            late = await Stub(channel).SendEcho(StringValue(value="0")).code()

            assert json.loads((await slow).value)["caller"] == "local"
            assert await ended == 0

    assert told == [SERVING, NOT_SERVING]
    assert late is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 4  # an open health watch does not hold it for the whole grace
    assert [json.loads(line)["event"] for line in running.lines if "draining" in line or "stopped" in line][-1] == (
        "stopped"
    )


def test_an_idle_process_stops_at_once_and_in_silence() -> None:
    with process(MODULE, ANYWHERE) as running:
        started = time.monotonic()

        assert running.end(signal.SIGINT) == 0

    assert time.monotonic() - started < GRACE / 2
    assert [line for line in running.lines if not line.startswith("{")] == []


def test_a_worker_that_dies_takes_the_process_with_it_and_its_text_is_not_told() -> None:
    code, said = refusal(ECHO_WORKER="die")

    assert code == 1
    assert "worker.ended" in said
    assert "RuntimeError" in said
    assert "5511912345678" not in said


@pytest.mark.parametrize("name", ["ECHO_LISTEN", "ECHO_OPERATIONS_LISTEN"])
def test_a_taken_port_is_said_plainly(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refusal(**{name: f"127.0.0.1:{port}"})

    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_an_open_door_to_the_world_is_refused_with_the_names_that_would_close_it() -> None:
    code, said = refusal(ECHO_LISTEN="0.0.0.0:0")

    assert code == 1
    assert "ECHO_AUTH_TOKENS" in said
    assert "ECHO_TLS_CLIENT_CA" in said


@asynccontextmanager
async def answered(store: FakeStore, **settings: str) -> AsyncIterator[tuple[grpc.aio.Channel, Readiness]]:
    readiness = Readiness(store)
    chosen = Settings.model_validate({"listen": "127.0.0.1:0", **settings})
    async with (
        readiness.watched(),
        answering(chosen, readiness, [Service(NAME, add_echo, EchoServicer())]) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        yield channel, readiness


async def test_health_follows_whether_the_process_can_store() -> None:
    store = FakeStore()
    async with answered(store) as (channel, readiness):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        told = [(await watch.read()).status]
        for failure in (Unavailable("disk full", reason="STORE_FULL"), None):
            store.fail_with = failure
            await asyncio.gather(readiness.check(), return_exceptions=True)
            told.append((await watch.read()).status)
        named = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
        unknown = await health.Check(health_pb2.HealthCheckRequest(service="no.Such")).code()
        foreign = await health.Watch(health_pb2.HealthCheckRequest(service="no.Such")).read()

    assert told == [SERVING, NOT_SERVING, SERVING]
    assert (named.status, unknown, foreign.status) == (SERVING, grpc.StatusCode.NOT_FOUND, SERVICE_UNKNOWN)


async def test_reflection_lists_the_services() -> None:
    async with answered(FakeStore()) as (channel, _):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
        listed = await call.read()
        await call.done_writing()

    assert {service.name for service in listed.list_services_response.service} == {
        NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
    }  # fmt: skip


async def test_a_method_that_does_not_exist_is_unimplemented() -> None:
    async with answered(FakeStore()) as (channel, _):
        nothing: Any = channel.unary_unary(f"/{NAME}/Nothing")

        assert await nothing(b"").code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_four_mebibytes_is_refused() -> None:
    async with answered(FakeStore()) as (channel, _):
        call = Stub(channel).SendEcho(StringValue(value="0" * (5 << 20)))

        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def certificate(folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> tuple[
    x509.Certificate, ec.EllipticCurvePrivateKey
]:  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made, key


async def test_with_mutual_tls_the_certificate_names_the_caller_and_others_stay_out(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority", None)
    certificate(tmp_path, "sms.clinic", authority)
    certificate(tmp_path, "gateway.clinic", authority)
    files = {
        "tls_cert": str(tmp_path / "sms.clinic.pem"),
        "tls_key": str(tmp_path / "sms.clinic.key"),
        "tls_client_ca": str(tmp_path / "authority.pem"),
    }
    roots = (tmp_path / "authority.pem").read_bytes()
    known = grpc.ssl_channel_credentials(
        roots, (tmp_path / "gateway.clinic.key").read_bytes(), (tmp_path / "gateway.clinic.pem").read_bytes()
    )
    settings = Settings.model_validate({"listen": "127.0.0.1:0", **files})
    async with answering(settings, Readiness(FakeStore()), [Service(NAME, add_echo, EchoServicer())]) as address:
        async with grpc.aio.secure_channel(str(address), known) as channel:
            answer = await Stub(channel).SendEcho(StringValue())
        async with grpc.aio.secure_channel(str(address), grpc.ssl_channel_credentials(roots)) as channel:
            stranger = await Stub(channel).SendEcho(StringValue(), timeout=3).code()

    assert json.loads(answer.value)["caller"] == "gateway.clinic"
    assert stranger is grpc.StatusCode.UNAVAILABLE


async def test_the_operators_listener_tells_alive_ready_and_metrics() -> None:
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
    assert ready == {"status": "ready", "provider": "CLOSED"}
    assert f'topsmile_rpc_seconds_count{{code="OK",method="/{NAME}/SendEcho"}} 1.0' in metrics
