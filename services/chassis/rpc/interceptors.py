"""
What happens around every RPC, one class for each reason.

Each awaits the next one in, so that unary calls and streams share one text and nothing is left open when a caller goes
away. Their order stands, with its reason, in server.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import grpc
import limits
import structlog
from google.protobuf.message import DecodeError, Message

from services.chassis import context, metrics
from services.chassis.errors import DeadlineExceeded, InvalidRequest, ServiceError, Throttled
from services.chassis.noting import note_answer
from services.chassis.outbound import deadline
from services.chassis.rpc import authentication
from services.chassis.rpc.caller_limit import CallerLimit
from services.chassis.rpc.error_details import DETAILS_KEY, to_status
from services.chassis.violations import Rule

DEFAULT_DEADLINE = 10.0  # seconds, for unary calls of callers that set none
MARGIN = 0.05  # what the answer needs for its way back
MEANINGFUL_WORK = 0.05
STREAMS_AGAIN = 5.0  # seconds after which a refused stream may be tried again
#: Those of a certificate's names that may be a caller's: not its addresses, and not its subject.
PEER_NAMES = ("peer_dns", "peer_uri")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

#: Seconds for a request's one message to arrive whole, and calls that may wait for theirs at the same time.
ARRIVAL, ARRIVING = 10.0, 2_000

SHED = Throttled("too many RPCs are running", reason="SHEDDING", retry_after=1.0)
LATE = DeadlineExceeded("the request must arrive whole within its time")
ABSENT = InvalidRequest([Rule.MALFORMED_MESSAGE.at("")])

REFUSED_CREDENTIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
#: What an operator looks into.
WARNINGS = (grpc.StatusCode.UNAVAILABLE, *REFUSED_CREDENTIALS)

log = structlog.get_logger()


@dataclass
class Call:
    """One RPC. `code` and `error` are what came of it, for the log line; `response` is a unary call's, serialised."""

    method: str
    handler: Handler
    request: Any
    rpc: grpc.aio.ServicerContext[Any, Any]
    code: grpc.StatusCode = grpc.StatusCode.OK
    error: Exception | None = None
    response: bytes | None = None

    @property
    def streaming(self) -> bool:
        return bool(self.handler.response_streaming)

    @property
    def health(self) -> bool:
        return self.method.startswith("/grpc.health.v1.Health/")

    @cached_property
    def metadata(self) -> dict[str, str]:
        return {key: value for key, value in self.rpc.invocation_metadata() or () if isinstance(value, str)}


Next: TypeAlias = Callable[[Call], Awaitable[None]]


class Interceptor(Protocol):
    async def intercept(self, call: Call, call_next: Next) -> None: ...


class Interceptors:
    """
    Stands in for the server that servicers are added to, and puts the interceptors around each method, outermost first.

    Once: gRPC's own interceptors are asked, and a handler made, at every call. Requests are parsed inside of them.
    """

    def __init__(
        self, server: grpc.aio.Server, interceptors: Sequence[Interceptor], *, arrival: float = ARRIVAL
    ) -> None:
        self._server = server
        self._interceptors = interceptors
        self._arrival = arrival
        self._arriving = 0

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        around = {name: self._around(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, around)])

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Not needed: generated code adds each method in the other way too."""

    def _around(self, method: str, handler: Handler) -> Handler:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        make, answer = (
            (grpc.stream_stream_rpc_method_handler, _stream)
            if handler.response_streaming
            else (grpc.stream_unary_rpc_method_handler, _answer)
        )
        call_next: Next = partial(answer, behaviour)
        for interceptor in reversed(self._interceptors):
            call_next = partial(interceptor.intercept, call_next=call_next)

        # To gRPC every request is a stream: for the one message of a unary request it would wait for ever.
        async def intercepted(requests: Any, rpc: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            request = requests if handler.request_streaming else await self._receive(rpc)
            call = Call(method, handler, request, rpc)
            await call_next(call)
            return call.response

        # gRPC answers UNKNOWN where bytes cannot be parsed or an answer cannot be serialised, so we do both ourselves.
        return make(intercepted, handler.request_deserializer if handler.request_streaming else None, None)

    async def _receive(self, rpc: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Wait for a request's message, before anything is counted or begun."""
        if self._arriving >= ARRIVING:
            await refuse(rpc, SHED)
        self._arriving += 1
        try:
            async with asyncio.timeout(self._arrival):
                request = await rpc.read()
        except TimeoutError:
            await refuse(rpc, LATE)
        finally:
            self._arriving -= 1
        if request is grpc.aio.EOF:
            await refuse(rpc, ABSENT)
        return request


async def refuse(rpc: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> NoReturn:
    """Refuse a call of which nothing has begun, at the least cost: no log line, and the details made once."""
    metrics.rpcs_shed_total.labels(error.reason).inc()
    await rpc.abort(error.code, error.message, trailers_of(error))
    raise AssertionError("abort raises")


@cache
def trailers_of(error: ServiceError) -> tuple[tuple[str, bytes], ...]:
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


async def _answer(behaviour: Any, call: Call) -> None:
    response = await behaviour(_parsed(call), call.rpc)
    if isinstance(response, Message):
        note_answer(response)
    call.response = _serialised(response, call.handler)


async def _stream(behaviour: Any, call: Call) -> None:
    # Drawn from here and not by gRPC, which would leave the generator to the garbage collector when the caller
    # cancels: its `finally` would run late, in another context.
    responses: AsyncGenerator[Any, None] = behaviour(_parsed(call), call.rpc)
    async with aclosing(responses):
        async for response in responses:
            await call.rpc.write(_serialised(response, call.handler))


def _parsed(call: Call) -> Any:
    if call.handler.request_streaming or call.handler.request_deserializer is None:
        return call.request
    try:
        return call.handler.request_deserializer(call.request)
    except DecodeError as error:
        raise InvalidRequest([Rule.MALFORMED_MESSAGE.at("")]) from error


def _serialised(response: Any, handler: Handler) -> bytes:
    serializer: Callable[[Any], bytes] | None = handler.response_serializer
    return serializer(response) if serializer else response


class ConcurrencyLimit:
    """
    Refuse early, rather than serve everybody late, above so many unary RPCs at once.

    No log line, no caller, no parsing: at ten times too much load, what refusals cost is what is missing for the rest.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running = 0

    async def intercept(self, call: Call, call_next: Next) -> None:
        if call.health or call.streaming:
            await call_next(call)
            return
        if self._running >= self._at_once:
            await refuse(call.rpc, SHED)
        self._running += 1
        metrics.rpcs_running.set(self._running)
        try:
            await call_next(call)
        finally:
            self._running -= 1
            metrics.rpcs_running.set(self._running)


class CorrelationId:
    """Join the caller's story or begin one: correlation id and trace. The trailers tell which."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        identity = context.adopt(call.metadata.get("x-correlation-id", ""), call.metadata.get("traceparent", ""))
        # Not in initial metadata: once a client has seen any, gRPC does not retry for it any more.
        call.rpc.set_trailing_metadata((("x-correlation-id", identity),))
        await call_next(call)


class AccessLog:
    """One log line and one observation for each RPC."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        started = time.monotonic()
        try:
            await call_next(call)
        except asyncio.CancelledError:
            late = call.rpc.time_remaining() == 0
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.monotonic() - started
            metrics.rpc_seconds.labels(call.method, call.code.name).observe(seconds)
            known = call.error is None or isinstance(call.error, ServiceError)
            reason = getattr(call.error, "reason", None)
            level = 40 if not known else 30 if call.code in WARNINGS else 10 if call.health else 20
            if call.code in REFUSED_CREDENTIALS:
                metrics.credentials_refused_total.labels(reason).inc()
            log.log(
                level, "rpc", method=call.method.removeprefix("/topsmile."), code=call.code.name, reason=reason,
                seconds=round(seconds, 4), caller=context.caller.get() or None, exc_info=None if known else call.error,
            )  # fmt: skip


class Errors:
    """Errors with names become statuses with details; everything else is a bug, and its text stays here."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        try:
            await call_next(call)
        except grpc.aio.AbortError:
            call.code = call.rpc.code()
            raise
        except ServiceError as error:
            call.code, call.error = error.code, error
            if error.code is grpc.StatusCode.INTERNAL:
                await self._refuse_bare(call)
            status = to_status(error)
            await self._refuse(call, status.message, ((DETAILS_KEY, status.SerializeToString()),))
        except Exception as bug:  # noqa: BLE001 - the one place that keeps a bug's text from crossing the wire
            call.code, call.error = grpc.StatusCode.INTERNAL, bug
            await self._refuse_bare(call)

    async def _refuse_bare(self, call: Call) -> None:
        await self._refuse(call, f"internal error, correlation id {context.correlation_id.get()}", ())

    async def _refuse(self, call: Call, message: str, trailers: tuple[tuple[str, str | bytes], ...]) -> None:
        trailers += (("x-correlation-id", context.correlation_id.get()),)
        if call.code is grpc.StatusCode.UNAVAILABLE:
            # We have retried what could be retried: the caller's channel is not to do it all over again.
            trailers += (("grpc-retry-pushback-ms", "-1"),)
        await call.rpc.abort(call.code, message, trailers)


class Authentication:
    """Name the caller and see that it may call this method."""

    def __init__(self, authenticator: authentication.Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept(self, call: Call, call_next: Next) -> None:
        scope = authentication.scope_of(call.method)
        if scope is not None:
            peer = call.rpc.auth_context()
            names = [name.decode(errors="replace") for kind in PEER_NAMES for name in peer.get(kind, ())]
            caller = self._authenticator.authenticate(call.metadata.get("authorization", ""), names)
            name, scopes = (
                call.metadata.get(authentication.CALLER_KEY, ""),
                call.metadata.get(authentication.SCOPES_KEY),
            )
            caller = authentication.on_behalf_of(caller, name, scopes)
            context.caller.set(caller.name)
            context.scopes.set(caller.scopes)
            authentication.require(caller, scope)
        await call_next(call)


class Streams:
    """
    Bound the streams that are open, all together and those of one caller, so that one caller does not take them all.

    Health watches need no token: they are counted apart, and by connection.
    """

    def __init__(self, at_once: int, each: int, each_health: int) -> None:
        self._at_once = at_once
        self._each = {False: each, True: each_health}
        self._open: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}

    async def intercept(self, call: Call, call_next: Next) -> None:
        if not call.streaming:
            await call_next(call)
            return
        counted, caller = self._open[call.health], call.rpc.peer() if call.health else context.caller.get()
        if counted[caller] >= self._each[call.health]:
            self._refuse("THROTTLED", f"{caller} may have {self._each[call.health]} streams open")
        if counted.total() >= self._at_once:
            self._refuse("SHEDDING", "too many streams are open")
        counted[caller] += 1
        metrics.streams_open.inc()
        try:
            await call_next(call)
        finally:
            metrics.streams_open.dec()
            counted[caller] -= 1
            if not counted[caller]:
                del counted[caller]

    def _refuse(self, reason: str, message: str) -> None:
        metrics.rpcs_shed_total.labels(reason).inc()
        raise Throttled(message, reason=reason, retry_after=STREAMS_AGAIN)


class CallerRateLimit:
    """Hold each caller to so many RPCs in a time."""

    def __init__(self, rate: limits.RateLimitItem | None) -> None:
        self._each = CallerLimit(rate)

    async def intercept(self, call: Call, call_next: Next) -> None:
        if not call.health:
            await self._each.count(context.caller.get())
        await call_next(call)


class Deadline:
    """Refuse work that cannot be finished before the caller stops listening, and tell the rest how long it has."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        remaining = cast("float | None", call.rpc.time_remaining())
        if remaining is None and call.streaming:
            await call_next(call)
            return
        seconds = (DEFAULT_DEADLINE if remaining is None else remaining) - MARGIN
        if seconds < MEANINGFUL_WORK:
            raise DeadlineExceeded(f"{seconds + MARGIN:.3f} s are too few to begin")
        # gRPC itself cancels at a deadline that the caller has set.
        timer = asyncio.timeout(seconds if remaining is None else None)
        try:
            with deadline.within(seconds):
                async with timer:
                    await call_next(call)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise DeadlineExceeded(f"not finished within {seconds:.1f} s", reason="OUTCOME_UNKNOWN") from error
