"""Limits of gRPC connections and streams, and that no caller can block another."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import DeadlineExceeded, InvalidRequest, Throttled
from services.chassis.rpc.error_details import from_rpc_error
from services.chassis.rpc.health import HealthServicer, Readiness
from services.chassis.rpc.interceptors import Interceptors
from services.chassis.rpc.server import (
    MAX_HEALTH_WATCHES,
    MAX_STREAMS,
    MAX_STREAMS_PER_CALLER,
    OPTIONS,
    Service,
    interceptor_chain,
    listening,
)
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Settings, Stub, add_echo

#: Without it, channels to one target share a connection.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and empty SETTINGS


def tokens(*names: str) -> str:
    return ",".join(f"{name}:read+send:{hashlib.sha256(name.encode()).hexdigest()}" for name in names)


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def served(*, arrival: float = 10.0, beat: float = 60.0, callers: str = "", **options: int) -> AsyncIterator[str]:
    """Serve with the real options, except for those that take minutes."""
    chosen = {**dict(OPTIONS), **{f"grpc.{name}": value for name, value in options.items()}}
    settings = Settings.model_validate({"listen": "127.0.0.1:0", **({"auth_tokens": callers} if callers else {})})
    server = grpc.aio.server(options=tuple(chosen.items()))
    methods = Interceptors(server, interceptor_chain(settings), receive_timeout=arrival)
    servicer = EchoServicer()
    servicer.beat = beat
    add_echo(servicer, methods)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(Readiness(FakeStore()), [NAME]), methods)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def begun(channel: grpc.aio.Channel, method: str = "SendEcho") -> Any:
    """Begin a unary call without its request."""
    return channel.stream_unary(f"/{NAME}/{method}")()


@pytest.mark.parametrize("method", ["SendEcho", "GetEcho", "WatchEchoes"])
async def test_request_that_never_arrives_ends_and_blocks_no_other(method: str) -> None:
    async with served(arrival=1.0) as target, grpc.aio.insecure_channel(target) as idle:
        calls = [begun(idle, method) for _ in range(1_000)]
        await asyncio.sleep(0.5)
        async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
            started = time.monotonic()
            await Stub(channel).SendEcho(StringValue())
            assert time.monotonic() - started < 0.5
        async with asyncio.timeout(20):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await calls[0]
            codes = Counter([await call.code() for call in calls])

    assert type(from_rpc_error(raised.value)) is DeadlineExceeded
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED: 1_000}


async def test_call_without_a_message_is_invalid() -> None:
    async with served() as target, grpc.aio.insecure_channel(target) as channel:
        call = begun(channel)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call

    assert type(from_rpc_error(raised.value)) is InvalidRequest


@pytest.mark.parametrize("at_once", [300, 1_000, 3_000])
async def test_client_with_more_calls_than_a_connection_allows_loses_none(at_once: int) -> None:
    async with served() as target, grpc.aio.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answers = await asyncio.gather(*(check(health_pb2.HealthCheckRequest()) for _ in range(at_once)))

    assert len(answers) == at_once


async def opened(stub: Stub, count: int, caller: str = "") -> tuple[list[Any], list[grpc.aio.AioRpcError]]:
    """Open watches over one connection, and return the open ones and the errors of the others."""
    calls = [stub.WatchEchoes(StringValue(), metadata=bearer(caller) if caller else None) for _ in range(count)]
    answers = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    return [call for call, answer in zip(calls, answers, strict=True) if answer not in refused], refused


async def test_watches_of_one_caller_block_no_other_watch_or_call() -> None:
    async with served(callers=tokens("a", "b")) as target, grpc.aio.insecure_channel(target) as channel:
        watching, refused = await opened(Stub(channel), MAX_STREAMS_PER_CALLER + 40, "a")
        error = from_rpc_error(refused[0])
        async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as other:
            theirs, _ = await opened(Stub(other), 5, "b")
            for caller in ("a", "b"):
                await Stub(other).SendEcho(StringValue(), metadata=bearer(caller), timeout=2)
        watching.pop().cancel()
        await asyncio.sleep(0.2)
        again, _ = await opened(Stub(channel), 1, "a")

    assert (len(watching) + 1, len(refused), len(theirs), len(again)) == (MAX_STREAMS_PER_CALLER, 40, 5, 1)
    assert (type(error), error.reason) == (Throttled, "THROTTLED")
    assert error.retry_after is not None


async def test_streams_of_all_callers_are_limited() -> None:
    names = [f"caller-{number}" for number in range(MAX_STREAMS // MAX_STREAMS_PER_CALLER + 1)]
    watching, refused = 0, []
    async with served(callers=tokens(*names)) as target:
        channels = [grpc.aio.insecure_channel(target, OWN_CONNECTION) for _ in names]
        for name, channel in zip(names, channels, strict=True):
            taken, errors = await opened(Stub(channel), MAX_STREAMS_PER_CALLER, name)
            watching += len(taken)
            refused += errors
        await Stub(channels[0]).SendEcho(StringValue(), metadata=bearer(names[-1]), timeout=5)
        await asyncio.gather(*(channel.close() for channel in channels))

    assert watching == MAX_STREAMS
    assert {from_rpc_error(error).reason for error in refused} == {"SHEDDING"}


@pytest.mark.parametrize("count", [50, 200, 240])
async def test_health_watches_are_limited_per_connection(count: int) -> None:
    async with served(callers=tokens("a")) as target, grpc.aio.insecure_channel(target) as crowded:
        watch = health_pb2_grpc.HealthStub(crowded).Watch
        calls = [watch(health_pb2.HealthCheckRequest()) for _ in range(count)]
        answers = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
        refused = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
            await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            await Stub(channel).SendEcho(StringValue(), metadata=bearer("a"))

    assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (count - MAX_HEALTH_WATCHES)


@pytest.mark.parametrize("sent", [PREFACE, b"", b"GET / HTTP/1.1\r\n\r\n", PREFACE[:10]])
async def test_idle_connection_is_closed(sent: bytes) -> None:
    async with served(max_connection_idle_ms=1_000, server_handshake_timeout_ms=1_000) as target:
        reader, writer = await asyncio.open_connection(*target.split(":"))
        writer.write(sent)
        async with asyncio.timeout(6):
            while await reader.read(1_000):
                pass
        writer.close()


async def test_old_connection_is_replaced_without_losing_a_call() -> None:
    async with (
        served(max_connection_age_ms=500, max_connection_age_grace_ms=500) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        watch = Stub(channel).WatchEchoes(StringValue())

        async def follow() -> None:
            async for _ in watch:
                pass

        following = asyncio.create_task(follow())
        async with asyncio.timeout(10):
            while not following.done():
                await Stub(channel).SendEcho(StringValue())
        for _ in range(20):
            await Stub(channel).SendEcho(StringValue())
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await following

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "max connection age" in (ended.value.details() or "")


def test_server_options_end_idle_and_old_connections() -> None:
    options = dict(OPTIONS)

    assert 60_000 <= options["grpc.max_connection_idle_ms"] <= 600_000
    assert 300_000 <= options["grpc.max_connection_age_ms"] <= 1_800_000
    assert options["grpc.max_connection_age_grace_ms"] <= 60_000
    assert options["grpc.max_concurrent_streams"] >= MAX_STREAMS_PER_CALLER
    assert 1_000 <= options["grpc.max_allowed_incoming_connections"] <= 10_000


async def test_server_has_the_required_options() -> None:
    settings = Settings.model_validate({"listen": "127.0.0.1:0"})
    async with (
        listening(settings, Readiness(FakeStore()), [Service(NAME, add_echo, EchoServicer())]) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        calls = [begun(channel) for _ in range(300)]
        await asyncio.sleep(0.5)
        late = asyncio.ensure_future(Stub(channel).SendEcho(StringValue(), timeout=1.0))
        with pytest.raises(grpc.aio.AioRpcError) as waiting:
            await late
        for call in calls:
            call.cancel()

    assert waiting.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # it waits at the client: 256 streams are open


@pytest.mark.parametrize("excess", [1, 3, 20])
async def test_connections_above_the_limit_are_closed_and_the_others_are_served(excess: int) -> None:
    limit = 5
    async with served(max_allowed_incoming_connections=limit) as target:
        host, _, port = target.rpartition(":")
        async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as early:
            await Stub(early).SendEcho(StringValue(value="0"))
            idle = [await asyncio.open_connection(host, int(port)) for _ in range(limit - 1 + excess)]
            for _, writer in idle:
                writer.write(PREFACE)
            received = await asyncio.gather(*(first_bytes(reader) for reader, _ in idle))
            served_meanwhile = await Stub(early).SendEcho(StringValue(value="0.01"))
            for _, writer in idle:
                writer.close()
            async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as late:
                served_after = await Stub(late).SendEcho(StringValue(value="0.02"), wait_for_ready=True, timeout=10)

    assert [bool(start) for start in received].count(False) == excess
    assert all(json.loads(served.value)["caller"] == "local" for served in (served_meanwhile, served_after))


async def first_bytes(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sends first; nothing where it closes the connection."""
    try:
        async with asyncio.timeout(5):
            return await reader.read(9)
    except ConnectionError:
        return b""
