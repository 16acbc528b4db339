"""
What happens around every RPC, one class for each reason.

Each is an async context manager around the call, so that unary calls and streams share one text and nothing is left
open when a caller goes away. Their order stands, with its reason, in server.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import grpc
import limits
import structlog
from google.protobuf.message import DecodeError

from services.chassis import authentication, context, deadline, metrics
from services.chassis.caller_limit import CallerLimit
from services.chassis.errors import (
    DETAILS_KEY,
    DeadlineExceeded,
    InvalidRequest,
    RanOutOfTime,
    ServiceError,
    Throttled,
    Violation,
    to_status,
)

DEFAULT_DEADLINE = 10.0  # seconds, for unary calls of callers that set none
MARGIN = 0.05  # what the answer needs for its way back
MEANINGFUL_WORK = 0.05

log = structlog.get_logger()


@dataclass
class Call:
    """One RPC. `code` and `error` are what came of it, for the log line."""

    method: str
    streaming: bool
    rpc: grpc.aio.ServicerContext[Any, Any]
    code: grpc.StatusCode = grpc.StatusCode.OK
    error: Exception | None = None
    metadata: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        offered = self.rpc.invocation_metadata() or ()
        self.metadata = {key: value for key, value in offered if isinstance(value, str)}

    @property
    def health(self) -> bool:
        return self.method.startswith("/grpc.health.v1.Health/")


class Interceptor(Protocol):
    def around(self, call: Call) -> AbstractAsyncContextManager[None]: ...


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Interceptors(grpc.aio.ServerInterceptor):
    """Put the interceptors, outermost first, around every handler; requests are parsed inside of them."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = interceptors

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None
        make, behaviour = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[handler.request_streaming, handler.response_streaming]
        answer = self._stream if handler.response_streaming else self._unary

        async def intercepted(request: Any, rpc: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            return await answer(
                Call(handler_call_details.method, handler.response_streaming, rpc), request, behaviour, handler
            )

        # gRPC answers UNKNOWN where bytes cannot be parsed or an answer cannot be serialised, so we do both ourselves.
        return make(intercepted, handler.request_deserializer if handler.request_streaming else None, None)

    async def _unary(self, call: Call, request: Any, behaviour: Any, handler: Handler) -> bytes:
        async with AsyncExitStack() as stack:
            for interceptor in self._interceptors:
                await stack.enter_async_context(interceptor.around(call))
            return _serialised(await behaviour(_parsed(request, handler), call.rpc), handler)
        raise AssertionError("no interceptor swallows an exception")

    async def _stream(self, call: Call, request: Any, behaviour: Any, handler: Handler) -> None:
        async with AsyncExitStack() as stack:
            for interceptor in self._interceptors:
                await stack.enter_async_context(interceptor.around(call))
            # Drawn from here and not by gRPC, which would leave the generator to the garbage collector when the caller
            # cancels: its `finally` would run late, in another context.
            responses: AsyncGenerator[Any, None] = behaviour(_parsed(request, handler), call.rpc)
            async with aclosing(responses):
                async for response in responses:
                    await call.rpc.write(_serialised(response, handler))


def _parsed(request: Any, handler: Handler) -> Any:
    if handler.request_streaming or handler.request_deserializer is None:
        return request
    try:
        return handler.request_deserializer(request)
    except DecodeError as error:
        raise InvalidRequest([Violation("", "is not the message that this method takes")]) from error


def _serialised(response: Any, handler: Handler) -> bytes:
    serializer: Callable[[Any], bytes] | None = handler.response_serializer
    return serializer(response) if serializer else response


class Story:
    """Join the caller's story or begin one: correlation id and trace."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        identity = context.adopt_correlation_id(call.metadata.get("x-correlation-id", ""))
        context.adopt_traceparent(call.metadata.get("traceparent", ""))
        echo = (("x-correlation-id", identity),)
        if call.streaming:
            await call.rpc.send_initial_metadata(echo)
        yield
        # Not before the outcome is known: once a client has seen initial metadata, gRPC does not retry for it any more.
        # A refusal carries the id in its trailers.
        if not call.streaming:
            await call.rpc.send_initial_metadata(echo)


class Telling:
    """One log line and one observation for each RPC."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        started = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            late = call.rpc.time_remaining() == 0
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.monotonic() - started
            metrics.rpc_seconds.labels(call.method, call.code.name).observe(seconds)
            known = call.error is None or isinstance(call.error, ServiceError)
            level = 40 if not known else 30 if call.code is grpc.StatusCode.UNAVAILABLE else 10 if call.health else 20
            log.log(
                level, "rpc", method=call.method, code=call.code.name, reason=getattr(call.error, "reason", None),
                seconds=round(seconds, 4), caller=context.caller.get() or None, exc_info=None if known else call.error,
            )  # fmt: skip


class Errors:
    """Errors with names become statuses with details; everything else is a bug, and its text stays here."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        try:
            yield
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

    def __init__(self, doorkeeper: authentication.Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        scope = authentication.scope_of(call.method)
        if scope is not None:
            names = call.rpc.auth_context().get("x509_subject_alternative_name", ())
            identities = [name.decode(errors="replace") for name in names]
            caller = self._doorkeeper.recognise(call.metadata.get("authorization", ""), identities)
            context.caller.set(authentication.on_behalf_of(caller, call.metadata.get("x-topsmile-caller", "")))
            authentication.require(caller, scope)
        yield


class Limits:
    """Refuse early, rather than serve everybody late: above so many RPCs at once, or so many of one caller's."""

    def __init__(self, at_once: int = 500, for_each_caller: limits.RateLimitItem | None = None) -> None:
        self._at_once = at_once
        self._running = 0
        self._each = CallerLimit(for_each_caller)

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.health:
            yield
            return
        if self._running >= self._at_once:
            metrics.rpcs_shed_total.labels("SHEDDING").inc()
            raise Throttled("too many RPCs are running", reason="SHEDDING", retry_after=1.0)
        await self._each.count(context.caller.get())
        self._running += 1
        metrics.rpcs_running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            metrics.rpcs_running.set(self._running)


class Deadline:
    """Refuse work that cannot be finished before the caller stops listening, and tell the rest how long it has."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        remaining = cast("float | None", call.rpc.time_remaining())
        if remaining is None and call.streaming:
            yield
            return
        seconds = (DEFAULT_DEADLINE if remaining is None else remaining) - MARGIN
        if seconds < MEANINGFUL_WORK:
            raise DeadlineExceeded(f"{seconds + MARGIN:.3f} s are too few to begin")
        # gRPC itself cancels at a deadline that the caller has set.
        timer = asyncio.timeout(seconds if remaining is None else None)
        try:
            with deadline.within(seconds):
                async with timer:
                    yield
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise RanOutOfTime(f"not finished within {seconds:.1f} s") from error
