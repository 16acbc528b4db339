"""All interceptors, around real RPCs of a real client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.chassis.errors import (
    InProgress,
    InvalidRequest,
    NotSent,
    PermissionDenied,
    ServiceError,
    Throttled,
    Unauthenticated,
    Unavailable,
    Violation,
)
from services.chassis.rpc.error_details import DETAILS_KEY, from_rpc_error
from services.chassis.rpc.health import HealthServicer, Readiness
from services.chassis.rpc.interceptors import Interceptors
from services.chassis.rpc.limits import ConcurrencyLimit
from services.chassis.rpc.server import Service, listening
from tests.fakes.echo_service import ADMIN_NAME, NAME, EchoServicer, FakeStore, Settings, Stub, add_echo

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


def entry(name: str, scopes: str, token: str) -> str:
    return f"{name}:{scopes}:{hashlib.sha256(token.encode()).hexdigest()}"


@asynccontextmanager
async def echoing(servicer: EchoServicer, **settings: str) -> AsyncIterator[grpc.aio.Channel]:
    chosen = Settings.model_validate({"listen": "127.0.0.1:0", **settings})
    readiness = Readiness(FakeStore())
    async with (
        readiness.monitored(),
        listening(chosen, readiness, [Service(NAME, add_echo, servicer)]) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        yield channel


@pytest.fixture
def servicer() -> EchoServicer:
    return EchoServicer()


@pytest.fixture
async def channel(servicer: EchoServicer) -> AsyncIterator[grpc.aio.Channel]:
    async with echoing(servicer) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    return Stub(channel)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def logged(lines: Sequence[EventDict]) -> list[EventDict]:
    """Return the RPC log lines once there are any: a refused caller has its response before the line."""
    async with asyncio.timeout(5):
        while not (found := [line for line in lines if line["event"] == "rpc"]):  # noqa: ASYNC110 - a list tells nobody that it grows
            await asyncio.sleep(0.01)
    return found


async def test_correlation_id_and_trace_of_the_caller_are_continued(stub: Stub) -> None:
    call = stub.SendEcho(text(), metadata=(("x-correlation-id", "request-1"), ("traceparent", TRACE)))

    known = json.loads((await call).value)
    assert known["correlation_id"] == "request-1"
    assert known["traceparent"].startswith(f"00-{'a' * 32}-")
    assert known["traceparent"] != TRACE
    assert (await call.trailing_metadata())["x-correlation-id"] == "request-1"


async def test_call_without_correlation_id_gets_one(stub: Stub) -> None:
    first, second = [json.loads((await stub.SendEcho(text())).value) for _ in range(2)]

    assert len(first["correlation_id"]) == 32
    assert first["correlation_id"] != second["correlation_id"]
    assert first["caller"] == "local"


@pytest.mark.parametrize("offered", ["two words", "a" * 129, ""])
async def test_invalid_correlation_id_is_replaced(stub: Stub, offered: str) -> None:
    known = json.loads((await stub.SendEcho(text(), metadata=(("x-correlation-id", offered),))).value)

    assert len(known["correlation_id"]) == 32


async def test_error_arrives_as_the_same_class_with_all_details(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = InvalidRequest([Violation("recipient", "is no number"), Violation("body", "is empty")])

    error = from_rpc_error(await refused(stub.SendEcho(text())))

    assert (type(error), error.violations) == (InvalidRequest, servicer.fail_with.violations)
    assert error.localized == "Alguns dados estão incorretos. Confira e tente de novo."


LONG_ERRORS = [
    InvalidRequest([Violation(f"appointments[{n}].patient_name", "não é válido: " * 40) for n in range(500)]),
    InvalidRequest([Violation("ação" * 200, "日本語のとても長い説明 " * 300, "R" * 500, "ção " * 3000)] * 300),
    InvalidRequest([Violation("a", "b", "", "c")] * 5_000),
    InvalidRequest([Violation("name", "👩🏽‍⚕️" * 4_000, "WRONG", "é" * 9_000)]),
    InvalidRequest([Violation("name", "must be shorter")], localized="É preciso " * 2_000),
    InvalidRequest([Violation("x", "%" * 9_000)], metadata={f"key_{n}": "ção " * 900 for n in range(30)}),
]


@pytest.mark.parametrize("error", LONG_ERRORS, ids=range(len(LONG_ERRORS)))
async def test_long_error_keeps_its_status_and_first_field(
    stub: Stub, servicer: EchoServicer, error: InvalidRequest
) -> None:
    servicer.fail_with = error

    with capture_logs():
        seen = await refused(stub.SendEcho(text(), metadata=(("x-correlation-id", "c" * 128),)))
    back = from_rpc_error(seen)

    assert (seen.code(), type(back)) == (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest)
    trailers = dict(seen.trailing_metadata() or ())
    assert len(base64.b64encode(trailers[DETAILS_KEY])) + len(quote(seen.details() or "")) + 400 < 8_192
    assert back.violations[0].field[:4] == error.violations[0].field[:4]
    named = len(back.violations)
    assert named == len(error.violations) or f"and {len(error.violations) - named + 1} more" in (
        back.violations[-1].description
    )


async def test_retry_info_arrives_in_seconds(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = InProgress("the same request is running")

    assert from_rpc_error(await refused(stub.SendEcho(text()))).retry_after == 1.0


async def test_bug_is_internal_without_its_text(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = KeyError("+5511912345678")

    with capture_logs() as lines:
        error = await refused(stub.SendEcho(text(), metadata=(("x-correlation-id", "request-1"),)))
        (line,) = await logged(lines)

    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, correlation id request-1"
    assert "+5511912345678" not in str(error)
    assert line["log_level"] == "error"
    assert line["exc_info"] is servicer.fail_with


class UnnamedError(ServiceError):
    pass


@pytest.mark.parametrize(
    "bug", [UnnamedError("no name"), TimeoutError(), asyncio.InvalidStateError(), StopAsyncIteration()]
)
async def test_unknown_never_reaches_a_caller(stub: Stub, servicer: EchoServicer, bug: Exception) -> None:
    servicer.fail_with = bug

    assert (await refused(stub.SendEcho(text()))).code() is grpc.StatusCode.INTERNAL


async def test_response_of_wrong_type_is_internal(stub: Stub, servicer: EchoServicer) -> None:
    servicer.answer_with = "no message"

    assert (await refused(stub.SendEcho(text()))).code() is grpc.StatusCode.INTERNAL


async def test_unparsable_request_is_invalid(stub: Stub) -> None:
    assert type(from_rpc_error(await refused(stub.SendBytes(b"\xff\xff\xff")))) is InvalidRequest


async def test_stream_error_has_details(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = NotSent("twilio", None, "twilio was not reached", retry_after=3.0)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        _ = [answer async for answer in stub.WatchEchoes(text())]

    assert type(from_rpc_error(raised.value)) is NotSent


async def test_unavailable_service_stops_channel_retries(servicer: EchoServicer) -> None:
    servicer.fail_with = Unavailable("the provider is down")
    policy = {
        "methodConfig": [{
            "name": [{}],
            "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
                            "retryableStatusCodes": ["UNAVAILABLE"]},
        }]
    }  # fmt: skip
    settings = Settings.model_validate({"listen": "127.0.0.1:0"})
    async with (
        listening(settings, Readiness(FakeStore()), [Service(NAME, add_echo, servicer)]) as address,
        grpc.aio.insecure_channel(str(address), [("grpc.service_config", json.dumps(policy))]) as channel,
    ):
        with capture_logs() as lines:
            await refused(Stub(channel).SendEcho(text()))
            assert len(await logged(lines)) == 1


async def test_deadline_is_passed_on_minus_a_margin(stub: Stub) -> None:
    known = json.loads((await stub.SendEcho(text(), timeout=3.0)).value)

    assert 2.5 < known["remaining"] < 2.96


async def test_call_without_deadline_gets_ten_seconds_and_a_stream_none(stub: Stub) -> None:
    assert 9.5 < json.loads((await stub.SendEcho(text())).value)["remaining"] < 10.0
    async for answer in stub.WatchEchoes(text()):
        assert json.loads(answer.value)["remaining"] is None
        break


async def test_call_with_too_little_time_is_refused(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = AssertionError("begun")
    error = await refused(stub.SendEcho(text(), timeout=0.09))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert from_rpc_error(error).reason == "DEADLINE_TOO_SHORT"


async def test_expired_deadline_cancels_the_call_and_is_logged(stub: Stub, servicer: EchoServicer) -> None:
    with capture_logs() as lines:
        error = await refused(stub.SendEcho(text("5"), timeout=0.2))
        (line,) = await logged(lines)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert servicer.running == 0
    assert line["code"] == "DEADLINE_EXCEEDED"


async def test_cancelled_stream_is_closed_at_once(stub: Stub, servicer: EchoServicer) -> None:
    with capture_logs() as lines:
        call = stub.WatchEchoes(text())
        async for _ in call:
            call.cancel()
            break
        (line,) = await logged(lines)

    assert (servicer.running, servicer.closed_streams) == (0, 1)
    assert line["code"] == "CANCELLED"


async def test_access_log_line_has_method_code_reason_and_caller(stub: Stub, servicer: EchoServicer) -> None:
    servicer.fail_with = Throttled("later")
    with capture_logs() as lines:
        await refused(stub.SendEcho(text()))
        await logged(lines)

    (line,) = lines
    assert line.pop("seconds") < 1
    assert line == {
        "event": "rpc", "log_level": "info", "method": "echo.v1.EchoService/SendEcho", "code": "RESOURCE_EXHAUSTED",
        "reason": "THROTTLED", "caller": "local", "exc_info": None,
    }  # fmt: skip


TOKENS = ",".join(
    [
        entry("clinic", "read+send", "t1"),
        entry("reader", "read", "t2"),
        entry("operator", "admin", "t3"),
        entry("gateway", "read+send+forward", "t5"),
    ]
)


def bearer(token: str, **more: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"), *((key.replace("_", "-"), value) for key, value in more.items()))


@pytest.mark.parametrize(
    ("authorization", "method", "admin", "reason"),
    [
        ("", "SendEcho", False, "UNAUTHENTICATED"),
        ("Bearer wrong", "GetEcho", False, "UNAUTHENTICATED"),
        ("Basic dDE=", "SendEcho", False, "UNAUTHENTICATED"),
        ("Bearer t2", "SendEcho", False, "PERMISSION_DENIED"),
        ("Bearer t1", "SendEcho", True, "PERMISSION_DENIED"),
    ],
)
async def test_refused_credentials_are_logged_and_counted_with_a_reason(
    servicer: EchoServicer, authorization: str, method: str, admin: bool, reason: str
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("topsmile_credentials_refused_total", {"reason": reason}) or 0.0

    before = counted()
    async with echoing(servicer, auth_tokens=TOKENS) as channel:
        with capture_logs() as lines:
            call = getattr(Stub(channel, ADMIN_NAME if admin else NAME), method)
            await call(text(), metadata=(("authorization", authorization),)).code()
            await logged(lines)

    [line] = [line for line in lines if line["event"] == "rpc"]
    assert (line["log_level"], line["code"], line["reason"]) == ("warning", reason, reason)
    assert counted() == before + 1
    assert not {"wrong", "dDE=", "t1", "t2"} & set(map(str, line.values()))


async def test_service_with_tokens_serves_only_health_without_one(servicer: EchoServicer) -> None:
    async with echoing(servicer, auth_tokens=TOKENS) as channel:
        stub = Stub(channel)
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        reflect: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")

        assert await check(b"") == b"\x08\x01"
        assert type(from_rpc_error(await refused(stub.SendEcho(text())))) is Unauthenticated
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reflect(iter([b""])).read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("token", "method", "admin", "code"),
    [
        ("t1", "SendEcho", False, "OK"),
        ("t2", "GetEcho", False, "OK"),
        ("t2", "SendEcho", False, "PERMISSION_DENIED"),
        ("t1", "SendEcho", True, "PERMISSION_DENIED"),
        ("t3", "SendEcho", True, "OK"),
        ("t3", "SendEcho", False, "PERMISSION_DENIED"),
        ("t4", "GetEcho", False, "UNAUTHENTICATED"),
    ],
)
async def test_token_grants_its_scopes_only(
    servicer: EchoServicer, token: str, method: str, admin: bool, code: str
) -> None:
    async with echoing(servicer, auth_tokens=TOKENS) as channel:
        call = getattr(Stub(channel, ADMIN_NAME if admin else NAME), method)(text(), metadata=bearer(token))

        assert (await call.code()).name == code


@pytest.mark.parametrize(
    ("token", "scopes", "known"),
    [
        ("t5", "read+send", ("other", ["read", "send"])),
        ("t5", "admin+send", ("other", ["send"])),
        ("t5", None, ("other", ["forward", "read", "send"])),
        ("t1", "read+send+admin", ("clinic", ["read", "send"])),
    ],
)
async def test_forwarded_call_has_the_callers_name_and_the_scopes_of_both(
    servicer: EchoServicer, token: str, scopes: str | None, known: tuple[str, list[str]]
) -> None:
    forwarded = {"x_topsmile_caller": "other"} | ({} if scopes is None else {"x_topsmile_scopes": scopes})
    async with echoing(servicer, auth_tokens=TOKENS) as channel:
        answer = json.loads((await Stub(channel).SendEcho(text(), metadata=bearer(token, **forwarded))).value)

    assert (answer["caller"], answer["scopes"]) == known


@pytest.mark.parametrize("scopes", ["read", "events+admin", "", "SEND", "send,read"])
async def test_forwarded_call_without_the_needed_scope_is_refused(servicer: EchoServicer, scopes: str) -> None:
    async with echoing(servicer, auth_tokens=TOKENS) as channel:
        metadata = bearer("t5", x_topsmile_caller="other", x_topsmile_scopes=scopes)
        error = from_rpc_error(await refused(Stub(channel).SendEcho(text(), metadata=metadata)))

    assert type(error) is PermissionDenied


async def test_loopback_without_tokens_may_forward_calls(stub: Stub) -> None:
    metadata = (("x-topsmile-caller", "other"), ("x-topsmile-scopes", "send"))
    known = json.loads((await stub.SendEcho(text(), metadata=metadata)).value)

    assert (known["caller"], known["scopes"]) == ("other", ["send"])


async def test_caller_over_its_limit_gets_retry_after_and_others_are_served(servicer: EchoServicer) -> None:
    async with echoing(servicer, auth_tokens=TOKENS, caller_limit="2/minute") as channel:
        stub = Stub(channel)
        for _ in range(2):
            await stub.GetEcho(text(), metadata=bearer("t1"))
        error = from_rpc_error(await refused(stub.GetEcho(text(), metadata=bearer("t1"))))
        await stub.GetEcho(text(), metadata=bearer("t2"))

    assert (type(error), error.reason) == (Throttled, "THROTTLED")
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 60


async def test_calls_above_the_concurrency_limit_are_shed_except_health(servicer: EchoServicer) -> None:
    server = grpc.aio.server()
    methods = Interceptors(server, [ConcurrencyLimit(1)])
    add_echo(servicer, methods)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(Readiness(FakeStore()), [NAME]), methods)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        first = asyncio.ensure_future(Stub(channel).SendEcho(text("0.2")))
        await asyncio.sleep(0.05)
        error = from_rpc_error(await refused(Stub(channel).SendEcho(text())))
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
        await first
        await Stub(channel).SendEcho(text())
    await server.stop(None)

    assert (type(error), error.reason, error.retry_after) == (Throttled, "SHEDDING", 1.0)
