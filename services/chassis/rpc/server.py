"""A gRPC process: bind, serve, drain, stop."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc

from services.chassis.http import server
from services.chassis.http.operations import ReadinessDetails, operations
from services.chassis.lifecycle import GRACE, Worker, working
from services.chassis.rpc import access_log, interceptors, limits
from services.chassis.rpc.authentication import Authenticator
from services.chassis.rpc.health import HealthServicer, Readiness, Store
from services.chassis.rpc.reflection import add_reflection
from services.chassis.settings import Address, ProcessSettings

OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it, a second server could bind the port and take half the calls
    # Above these limits gRPC resets calls without a time to come back. Its default is 1,000.
    ("grpc.server.max_pending_requests", 4_000),
    ("grpc.server.max_pending_requests_hard_limit", 6_000),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients may ping every 20 s, also between calls; more often closes their connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", 256),
    # With overload protection, the server refuses allowed calls that begin just as others end.
    ("grpc.http.overload_protection", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # One more is closed at once. A connection that does nothing takes about 10 KiB and a file descriptor.
    ("grpc.max_allowed_incoming_connections", 2_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # A client resolves its target at each new connection, so it finds new replicas. Streams that are open after the
    # grace end with UNAVAILABLE.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)

#: Unary RPCs that run at one time. More would exceed their deadlines, so their callers should use another replica.
MAX_CONCURRENT = 200
#: Streams of all callers, streams of one caller, and health watches of one connection.
MAX_STREAMS, MAX_STREAMS_PER_CALLER, MAX_HEALTH_WATCHES = 1_000, 200, 10

log = structlog.get_logger()


class Service(NamedTuple):
    """`add` is the generated add_…Servicer_to_server. `drain` ends open streams, which would delay the stop."""

    name: str
    add: Callable[[Any, Any], None]
    servicer: object
    drain: Callable[[], None] | None = None


def interceptor_chain(settings: ProcessSettings) -> list[interceptors.Interceptor]:
    """Return the interceptors of every RPC, outermost first."""
    return [
        limits.ConcurrencyLimit(MAX_CONCURRENT),  # first: a refusal must cost little
        access_log.CorrelationId(),  # all log lines need the id
        access_log.AccessLog(),  # outside of Errors: it logs the status that the caller receives
        interceptors.Errors(),  # refusals of the next ones carry details too
        interceptors.Authentication(Authenticator(settings.auth_tokens)),  # the limits are per caller
        limits.StreamLimit(MAX_STREAMS, MAX_STREAMS_PER_CALLER, MAX_HEALTH_WATCHES),
        limits.CallerLimit(settings.caller_limit),
        interceptors.Deadline(),  # innermost: the others cost no part of it
    ]


async def serve(
    settings: ProcessSettings,
    database: Store,
    *,
    services: Sequence[Service],
    workers: Sequence[Worker] = (),
    details: ReadinessDetails | None = None,
) -> None:
    """
    Serve until SIGTERM or SIGINT, then drain.

    The order is: report NOT_SERVING, finish running RPCs (they may need the workers), finish the workers, close the
    operations listener. Operators can so watch the drain.
    """
    readiness = Readiness(database)
    app = operations(settings, readiness, details or {})
    async with (
        server.listening(app, settings.operations_listen, **server.tls(settings)) as operations_address,
        readiness.monitored(),
        working(workers) as over,
        listening(settings, readiness, services) as address,
    ):
        log.info("listening", grpc=str(address), operations=str(operations_address))
        await over.wait()
        log.info("draining", grace=GRACE)
    log.info("stopped")


@asynccontextmanager
async def listening(
    settings: ProcessSettings, readiness: Readiness, services: Sequence[Service], listen: Address | None = None
) -> AsyncIterator[Address]:
    """
    Serve RPCs while the body runs, then drain. Yield the address, with port 0 resolved.

    `listen` None: on the address of the process.
    """
    listen = listen or settings.listen
    server = grpc.aio.server(options=OPTIONS)
    methods = interceptors.Interceptors(server, interceptor_chain(settings))
    names = [service.name for service in services]
    for service in services:
        service.add(service.servicer, methods)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, names), methods)
    add_reflection(methods, [*names, health.SERVICE_NAME])
    address = Address(listen.host, bind(server, settings, listen))
    await server.start()
    try:
        yield address
    finally:
        readiness.drain()
        for service in services:
            if service.drain is not None:
                service.drain()
        await server.stop(GRACE)


def bind(server: grpc.aio.Server, settings: ProcessSettings, listen: Address) -> int:
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            return server.add_insecure_port(str(listen))
        authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
        return server.add_secure_port(str(listen), credentials)
    except (RuntimeError, OSError) as error:
        raise SystemExit(f"cannot listen on {listen}: {error}") from error
