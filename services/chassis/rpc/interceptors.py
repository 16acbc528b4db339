"""
The interceptors around every RPC: the mechanism, and those for errors, callers and deadlines.

Each awaits the next one, so unary calls and streams share the code and a cancelled call leaves nothing open.
`server.py` holds their order and its reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message

from services.chassis import context, metrics
from services.chassis.errors import DeadlineExceeded, InvalidRequest, ServiceError, Throttled
from services.chassis.logs import log_response
from services.chassis.outbound import deadline
from services.chassis.rpc import authentication
from services.chassis.rpc.error_details import DETAILS_KEY, to_status
from services.chassis.violations import Rule

#: Seconds for unary calls whose callers set no deadline.
DEFAULT_DEADLINE = 10.0
#: Seconds that the response needs to reach the caller, and the least that is worth beginning with.
MARGIN = MEANINGFUL_WORK = 0.05
#: Seconds for the message of a unary request to arrive, and the calls that may wait for theirs at one time.
RECEIVE_TIMEOUT, MAX_RECEIVING = 10.0, 2_000
#: The names in a certificate that may be a caller's. Addresses and subjects may not.
PEER_NAMES = ("peer_dns", "peer_uri")

SHED = Throttled("too many RPCs are running", reason="SHEDDING", retry_after=1.0)
TOO_LATE = DeadlineExceeded("the request must arrive whole within its time")
NO_MESSAGE = InvalidRequest([Rule.MALFORMED_MESSAGE.at("")])

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass
class Call:
    """One RPC. `code` and `error` hold its outcome; `response` is the serialized response of a unary call."""

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
    Register servicers with the interceptors around each method, outermost first.

    The chain is built once per method. gRPC's own interceptors build a handler at every call, after it has parsed the
    request.
    """

    def __init__(
        self, server: grpc.aio.Server, interceptors: Sequence[Interceptor], *, receive_timeout: float = RECEIVE_TIMEOUT
    ) -> None:
        self._server = server
        self._interceptors = interceptors
        self._receive_timeout = receive_timeout
        self._receiving = 0

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        intercepted = {name: self._intercepted(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, intercepted)])

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore the handlers: generated code registers each method by the other way too."""

    def _intercepted(self, method: str, handler: Handler) -> Handler:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        make, run = (
            (grpc.stream_stream_rpc_method_handler, _stream)
            if handler.response_streaming
            else (grpc.stream_unary_rpc_method_handler, _unary)
        )
        call_next: Next = partial(run, behaviour)
        for interceptor in reversed(self._interceptors):
            call_next = partial(interceptor.intercept, call_next=call_next)

        # gRPC sees every request as a stream, because it waits without limit for the message of a unary request.
        async def intercept(requests: Any, rpc: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            request = requests if handler.request_streaming else await self._receive(rpc)
            call = Call(method, handler, request, rpc)
            await call_next(call)
            return call.response

        # We parse and serialize ourselves, because gRPC answers UNKNOWN where either fails.
        return make(intercept, handler.request_deserializer if handler.request_streaming else None, None)

    async def _receive(self, rpc: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Return the message of a unary request, before any interceptor runs."""
        if self._receiving >= MAX_RECEIVING:
            await refuse(rpc, SHED)
        self._receiving += 1
        try:
            async with asyncio.timeout(self._receive_timeout):
                request = await rpc.read()
        except TimeoutError:
            await refuse(rpc, TOO_LATE)
        finally:
            self._receiving -= 1
        if request is grpc.aio.EOF:
            await refuse(rpc, NO_MESSAGE)
        return request


async def refuse(rpc: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> NoReturn:
    """Refuse a call that has not begun, at the lowest cost: without a log line, and with cached details."""
    metrics.rpcs_shed_total.labels(error.reason).inc()
    await rpc.abort(error.code, error.message, _trailers(error))
    raise AssertionError("abort raises")


@cache
def _trailers(error: ServiceError) -> tuple[tuple[str, bytes], ...]:
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


async def _unary(behaviour: Any, call: Call) -> None:
    response = await behaviour(_parsed(call), call.rpc)
    if isinstance(response, Message):
        log_response(response)
    call.response = _serialized(response, call.handler)


async def _stream(behaviour: Any, call: Call) -> None:
    # gRPC leaves the generator of a cancelled call to the garbage collector, so its `finally` would run late, in
    # another context. Here it is closed with the call.
    responses: AsyncGenerator[Any, None] = behaviour(_parsed(call), call.rpc)
    async with aclosing(responses):
        async for response in responses:
            await call.rpc.write(_serialized(response, call.handler))


def _parsed(call: Call) -> Any:
    if call.handler.request_streaming or call.handler.request_deserializer is None:
        return call.request
    try:
        return call.handler.request_deserializer(call.request)
    except DecodeError as error:
        raise InvalidRequest([Rule.MALFORMED_MESSAGE.at("")]) from error


def _serialized(response: Any, handler: Handler) -> bytes:
    serializer: Callable[[Any], bytes] | None = handler.response_serializer
    return serializer(response) if serializer else response


class Errors:
    """Turn a ServiceError into a status with details, and any other exception into INTERNAL without its text."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        try:
            await call_next(call)
        except grpc.aio.AbortError:
            call.code = call.rpc.code()
            raise
        except ServiceError as error:
            call.code, call.error = error.code, error
            if error.code is grpc.StatusCode.INTERNAL:
                await self._abort_internal(call)
            status = to_status(error)
            await self._abort(call, status.message, ((DETAILS_KEY, status.SerializeToString()),))
        except Exception as bug:  # noqa: BLE001 - the text of a bug must not cross the wire
            call.code, call.error = grpc.StatusCode.INTERNAL, bug
            await self._abort_internal(call)

    async def _abort_internal(self, call: Call) -> None:
        await self._abort(call, f"internal error, correlation id {context.correlation_id.get()}", ())

    async def _abort(self, call: Call, message: str, trailers: tuple[tuple[str, str | bytes], ...]) -> None:
        trailers += (("x-correlation-id", context.correlation_id.get()),)
        if call.code is grpc.StatusCode.UNAVAILABLE:
            # This process has retried already, so the caller's channel must not retry again.
            trailers += (("grpc-retry-pushback-ms", "-1"),)
        await call.rpc.abort(call.code, message, trailers)


class Authentication:
    """Name the caller and check that its scopes allow the method."""

    def __init__(self, authenticator: authentication.Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept(self, call: Call, call_next: Next) -> None:
        scope = authentication.scope_of(call.method)
        if scope is not None:
            peer, metadata = call.rpc.auth_context(), call.metadata
            identities = [name.decode(errors="replace") for kind in PEER_NAMES for name in peer.get(kind, ())]
            caller = authentication.on_behalf_of(
                self._authenticator.authenticate(metadata.get("authorization", ""), identities),
                metadata.get(authentication.CALLER_KEY, ""),
                metadata.get(authentication.SCOPES_KEY),
            )
            context.caller.set(caller.name)
            context.scopes.set(caller.scopes)
            authentication.require(caller, scope)
        await call_next(call)


class Deadline:
    """Refuse a call whose deadline is too near, and give the others a deadline."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        remaining = cast("float | None", call.rpc.time_remaining())
        if remaining is None and call.streaming:
            await call_next(call)
            return
        seconds = (DEFAULT_DEADLINE if remaining is None else remaining) - MARGIN
        if seconds < MEANINGFUL_WORK:
            raise DeadlineExceeded(f"{seconds + MARGIN:.3f} s are too few to begin")
        # gRPC itself cancels the call at a deadline that the caller has set.
        timer = asyncio.timeout(seconds if remaining is None else None)
        try:
            with deadline.within(seconds):
                async with timer:
                    await call_next(call)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise DeadlineExceeded(f"not finished within {seconds:.1f} s", reason="OUTCOME_UNKNOWN") from error
