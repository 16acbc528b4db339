"""The public listener: what happens around every request, who may call what, and the routes."""

import time
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.appointments import Appointments
from gateway.bodies import CLOSE
from gateway.clients import Clients
from gateway.payments import Payments
from gateway.settings import Settings
from gateway.signatures import TwilioSecrets
from gateway.status import Status
from gateway.webhooks import (
    MAX_SENDGRID_BYTES,
    MAX_STRIPE_BYTES,
    MAX_TWILIO_BYTES,
    Webhook,
    sendgrid_events,
    stripe_events,
    twilio_events,
)
from services.chassis import context, metrics
from services.chassis.database.transactions import Database
from services.chassis.errors import PermissionDenied, ServiceError, Unavailable
from services.chassis.http.problems import Refusal, answer
from services.chassis.outbound import deadline
from services.chassis.rpc import authentication
from services.chassis.rpc.authentication import Authenticator
from services.chassis.rpc.limits import CallerLimit

DEADLINE = 10.0  # seconds for a whole request
MAX_CONCURRENT = 500  # requests that run together; more are shed
WAITING = 2000  # requests whose senders are slow; they take nobody's turn
SMALL = 64 << 10  # bytes of a body that are always taken
LARGE = 64 << 20  # bytes of all bodies together, beyond what is small of each
#: Headers that a proxy adds: its clients are not on this machine's loopback.
FORWARDED = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}

log = structlog.get_logger()

Endpoint = Callable[[Request], Awaitable[Response]]


class Entry:
    """Around every request: its story, one log line, a bound on how many run, and no word of a bug to the outside."""

    def __init__(self, app: ASGIApp, at_once: int) -> None:
        self._app = app
        self._at_once = at_once
        self._running = 0
        self._waiting = 0
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._running >= self._at_once or self._waiting >= WAITING:
            # Before anything costs anything: what refusals take is what is missing for the rest.
            await answer(shedding())(scope, receive, send)
            return
        offered = dict(scope["headers"])
        identity = context.adopt(
            offered.get(b"x-correlation-id", b"").decode("latin-1"), offered.get(b"traceparent", b"").decode("latin-1")
        )
        echo = ((b"x-correlation-id", identity.encode()), (b"traceparent", context.traceparent.get().encode()))
        started, status, bug, taken = time.monotonic(), 0, None, 0

        async def echoing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *echo]
            await send(message)

        async def counting() -> Message:
            nonlocal taken
            message = await self._receive(receive)
            before, taken = taken, taken + len(message.get("body", b""))
            self._large += max(0, taken - SMALL) - max(0, before - SMALL)
            if taken > SMALL and self._large > LARGE:
                raise shedding()
            return message

        self._running += 1
        try:
            self._admit(scope)
            await self._app(scope, counting, echoing)
        except Exception as error:  # noqa: BLE001 - the one place that keeps a bug's text from the outside
            bug = None if isinstance(error, (ServiceError, Refusal)) else error
            if not status:
                await answer(error)(scope, receive, echoing)
        finally:
            self._running -= 1
            self._large -= max(0, taken - SMALL)
            _tell(scope, status, time.monotonic() - started, bug)

    @staticmethod
    def _admit(scope: Scope) -> None:
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 and scope["http_version"] == "1.1":
            raise Refusal(400, "NO_HOST", "a request names one host", CLOSE)

    async def _receive(self, receive: Receive) -> Message:
        """Wait for a sender without taking a turn meanwhile."""
        self._running -= 1
        self._waiting += 1
        try:
            message = await receive()
        finally:
            self._running += 1
            self._waiting -= 1
        if self._running > self._at_once:
            raise shedding()
        return message


def shedding() -> Unavailable:
    metrics.rpcs_shed_total.labels("SHEDDING").inc()
    return Unavailable("too many requests are running", reason="SHEDDING", retry_after=1.0)


def _tell(scope: Scope, status: int, seconds: float, bug: Exception | None) -> None:
    route = getattr(scope.get("route"), "path", "none")  # the pattern: paths hold ids
    method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST"} else "OTHER"
    metrics.http_requests_total.labels(route, method, status).inc()
    metrics.http_seconds.labels(route).observe(seconds)
    log.log(
        40 if bug else 30 if status in {401, 403} else 20,
        "http", route=route, method=method, status=status, reason=scope.get("reason"), seconds=round(seconds, 4),
        caller=context.caller.get() or None, exc_info=bug,
    )  # fmt: skip


class Guard:
    """Names the caller of /v1 and holds it to its scopes and limits."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._seconds = seconds
        self._anonymous = not settings.auth_tokens
        self._doorkeeper = Authenticator(settings.auth_tokens)
        self._each = CallerLimit(settings.caller_limit)

    def before(self, scope: authentication.Scope, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            if self._anonymous and not FORWARDED.isdisjoint(request.headers):
                raise PermissionDenied("what a proxy forwards needs a token: set GATEWAY_AUTH_TOKENS")
            caller = self._doorkeeper.authenticate(request.headers.get("authorization", ""))
            context.caller.set(caller.name)
            context.scopes.set(frozenset(caller.scopes))
            authentication.require(caller, scope)
            await self._each.count(caller.name)
            with deadline.within(self._seconds):
                return await endpoint(request)

        return guarded

    def by_method(self, **endpoints: tuple[authentication.Scope, Endpoint]) -> Endpoint:
        """Return one endpoint for a path whose methods need different scopes."""
        guarded = {method: self.before(scope, endpoint) for method, (scope, endpoint) in endpoints.items()}

        async def dispatch(request: Request) -> Response:
            return await guarded["GET" if request.method == "HEAD" else request.method](request)

        return dispatch


def application(
    settings: Settings,
    database: Database,
    clients: Clients,
    wake: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    at_once: int = MAX_CONCURRENT,
    seconds: float = DEADLINE,
) -> Starlette:
    guard = Guard(settings, seconds)
    appointments, payments = Appointments(clients), Payments(clients)
    app = Starlette(
        routes=[
            *webhooks(settings, database, wake, clock),
            Route("/v1/appointments/{id}/confirmation", guard.before("send", appointments.confirm), methods=["POST"]),
            Route("/v1/appointments/{id}/reminder", guard.before("send", appointments.remind), methods=["POST"]),
            Route(
                "/v1/payments",
                guard.by_method(GET=("read", payments.list_payments), POST=("send", payments.create)),
                methods=["GET", "POST"],
            ),
            Route("/v1/payments/{id}", guard.before("read", payments.get)),
            Route("/v1/status", guard.before("read", Status(settings, clients))),
        ],
        middleware=[Middleware(Entry, at_once=at_once)],
        exception_handlers={ServiceError: _problem, HTTPException: _problem},
    )
    app.router.redirect_slashes = False  # a redirect would be made of the caller's Host header
    return app


def webhooks(
    settings: Settings, database: Database, wake: Callable[[str], None], clock: Callable[[], float]
) -> list[Route]:
    stripe_secrets = [secret.get_secret_value().encode() for secret in settings.stripe_webhook_secret]
    twilio_tokens = [token.get_secret_value().encode() for token in settings.twilio_auth_token]
    twilio_secrets = TwilioSecrets(twilio_tokens, settings.twilio_shared_keys)
    stripe = partial(stripe_events, secrets=stripe_secrets, clock=clock)
    sendgrid = partial(
        sendgrid_events,
        keys=settings.sendgrid_webhook_public_key,
        window=settings.sendgrid_webhook_window,
        clock=clock,
    )
    twilio = partial(twilio_events, secrets=twilio_secrets, public_url=settings.public_url)
    return [
        Route("/webhooks/stripe", Webhook(database, "stripe", stripe, MAX_STRIPE_BYTES, wake)),
        Route("/webhooks/sendgrid", Webhook(database, "sendgrid", sendgrid, MAX_SENDGRID_BYTES, wake)),
        Route("/webhooks/twilio/status", Webhook(database, "twilio", twilio, MAX_TWILIO_BYTES, wake)),
    ]


async def _problem(_request: Request, error: Exception) -> Response:
    return answer(error)
