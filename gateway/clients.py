"""The three services behind the gateway: a channel each, and a breaker in front of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from gateway.settings import Settings, Target
from services.chassis import context
from services.chassis.errors import CredentialsRefused, PermissionDenied, Unauthenticated
from services.chassis.logs import log_response
from services.chassis.outbound import deadline
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.rpc.error_details import from_rpc_error
from topsmile.email.v1 import email_pb2_grpc
from topsmile.payments.v1 import payments_pb2_grpc
from topsmile.sms.v1 import sms_pb2_grpc

DEFAULT_TIMEOUT = 10.0

CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{}],
            # Every RPC of the contracts is safe to repeat. A service that has given up says so and is not asked again.
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
OPTIONS = (
    ("grpc.service_config", json.dumps(CONFIG)),
    ("grpc.enable_http_proxy", 0),
    # A service is back within seconds of its restart, not of its last outage's length.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

Q = TypeVar("Q")
A = TypeVar("A")


def channel_to(target: Target) -> grpc.aio.Channel:
    if target.ca is None:
        return grpc.aio.insecure_channel(target.address, options=OPTIONS)
    pair = (target.key.read_bytes(), target.certificate.read_bytes()) if target.key and target.certificate else ()
    credentials = grpc.ssl_channel_credentials(target.ca.read_bytes(), *pair)
    name = [("grpc.ssl_target_name_override", target.name)] if target.name else []
    return grpc.aio.secure_channel(target.address, credentials, options=(*OPTIONS, *name))


class Service:
    def __init__(self, name: str, target: Target, token: str = "") -> None:
        self.name = name
        self.target = target
        self.channel = channel_to(target)
        self.breaker = CircuitBreaker(name, open_for=2.0, max_open_for=60.0)
        self._credentials = (("authorization", f"Bearer {token}"),) if token else ()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return *context.outgoing_metadata(), *self._credentials

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q) -> A:
        """Call through the breaker, within what remains of the deadline; raises ServiceErrors only."""
        return await self.breaker.call(self._call, method, request)

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q) -> A:
        remaining = deadline.remaining()
        timeout = DEFAULT_TIMEOUT if remaining is None else remaining
        try:
            answer = await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.aio.AioRpcError as error:
            raise self.named(error) from error
        if isinstance(answer, Message):
            log_response(answer)
        return answer

    def named(self, error: grpc.aio.AioRpcError) -> Exception:
        """Return the error of a call. A refused token is the gateway's own, so its caller is not at fault."""
        raised = from_rpc_error(error)
        if isinstance(raised, Unauthenticated | PermissionDenied):
            return CredentialsRefused(self.name, error, f"{self.name} does not take the gateway's token")
        return raised


class Clients:
    def __init__(self, settings: Settings) -> None:
        token = settings.gateway_token.get_secret_value() if settings.gateway_token else ""
        self.payments = Service("payments", settings.target("payments"), token)
        self.email = Service("email", settings.target("email"), token)
        self.sms = Service("sms", settings.target("sms"), token)
        self.all = (self.payments, self.email, self.sms)
        self.payment_stub = payments_pb2_grpc.PaymentServiceStub(self.payments.channel)
        self.payment_admin_stub = payments_pb2_grpc.PaymentAdminServiceStub(self.payments.channel)
        self.email_stub = email_pb2_grpc.EmailServiceStub(self.email.channel)
        self.email_admin_stub = email_pb2_grpc.EmailAdminServiceStub(self.email.channel)
        self.sms_stub = sms_pb2_grpc.SmsServiceStub(self.sms.channel)
        self.sms_admin_stub = sms_pb2_grpc.SmsAdminServiceStub(self.sms.channel)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Clients]:
    """Make the channels. They connect when they are needed, so the services may start later."""
    clients = Clients(settings)
    try:
        yield clients
    finally:
        for service in clients.all:
            await service.channel.close()
