"""The public listener: the middleware of every request, authorization, and the routes."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial

import structlog
from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.appointments import Appointments
from gateway.bodies import CLOSE
from gateway.clients import Clients
from gateway.messages import Messages
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
MAX_CONCURRENT = 500  # requests that run together; more wait for a turn
MAX_TURN_WAIT = 2.0  # seconds until a request without a turn is shed
MAX_SLOW = 2000  # requests whose senders are slow; they take nobody's turn
SMALL = 64 << 10  # bytes of a body that are always taken
LARGE = 64 << 20  # bytes of all bodies together, beyond what is small of each
#: Headers that a proxy adds: its clients are not on this machine's loopback.
FORWARDED = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}

log = structlog.get_logger()

Endpoint = Callable[[Request], Awaitable[Response]]


class RequestMiddleware:
    """
    Give each request a correlation id, a log line and a turn; hide the text of bugs.

    Webhooks are found by their path alone: the framework's routing costs more than their signature.

    A request without a turn waits, first come, first served. Its client sends nothing else meanwhile, so an overload
    costs little. An early refusal costs as much as a fifth of an answer, and clients would send the next request at
    once.
    """

    def __init__(self, app: ASGIApp, webhooks: Mapping[str, Webhook], max_concurrent: int) -> None:
        self._app = app
        self._webhooks = webhooks
        self._max_concurrent = max_concurrent
        self._running = 0
        self._turns: deque[asyncio.Future[bool]] = deque()
        self._slow = 0
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._slow >= MAX_SLOW:
                raise shedding()
            await self._take_turn()
        except Unavailable as error:
            await answer(error)(scope, receive, send)
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

        try:
            self._require_host(scope)
            webhook = self._webhooks.get(scope["path"])
            if webhook is not None:
                scope["route"] = webhook
            await (webhook or self._app)(scope, counting, echoing)
        except Exception as error:  # noqa: BLE001 - the one place that keeps a bug's text from the outside
            bug = None if isinstance(error, (ServiceError, Refusal)) else error
            if not status:
                await answer(error)(scope, receive, echoing)
        finally:
            self._running -= 1
            self._give_turns()
            self._large -= max(0, taken - SMALL)
            _log_request(scope, status, time.monotonic() - started, bug)

    async def _take_turn(self) -> None:
        """Wait for a turn; raise Unavailable after MAX_TURN_WAIT."""
        if self._running < self._max_concurrent:
            self._running += 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._turns.append(turn)
        expiry = loop.call_later(MAX_TURN_WAIT, _expire, turn)
        taken = await turn
        expiry.cancel()
        if not taken:
            raise shedding()

    def _give_turns(self) -> None:
        while self._turns and self._running < self._max_concurrent:
            turn = self._turns.popleft()
            if not turn.done():  # it has expired
                self._running += 1
                turn.set_result(True)

    async def _receive(self, receive: Receive) -> Message:
        """Receive without a turn, so that a slow sender does not keep others from theirs."""
        self._running -= 1
        self._slow += 1
        if self._turns:  # call_soon: a body that is already here comes before the turn is given away
            asyncio.get_running_loop().call_soon(self._give_turns)
        try:
            message = await receive()
        finally:
            self._running += 1
            self._slow -= 1
        if self._running > self._max_concurrent:
            self._running -= 1
            try:
                await self._take_turn()
            except Unavailable:
                self._running += 1  # the request has not ended yet
                raise
        return message

    @staticmethod
    def _require_host(scope: Scope) -> None:
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 and scope["http_version"] == "1.1":
            raise Refusal(400, "NO_HOST", "a request must name one host", CLOSE)


def _expire(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


def shedding() -> Unavailable:
    metrics.rpcs_shed_total.labels("SHEDDING").inc()
    return Unavailable("too many requests are running", reason="SHEDDING", retry_after=1.0)


@lru_cache(maxsize=512)
def _series(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return metrics.http_requests_total.labels(route, method, status), metrics.http_seconds.labels(route)


def _log_request(scope: Scope, status: int, seconds: float, bug: Exception | None) -> None:
    route = getattr(scope.get("route"), "path", "none")  # the pattern: paths hold ids
    method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST"} else "OTHER"
    requests, durations = _series(route, method, status)
    requests.inc()
    durations.observe(seconds)
    log.log(
        40 if bug else 30 if status in {401, 403} else 20,
        "http", route=route, method=method, status=status, reason=scope.get("reason"), seconds=round(seconds, 4),
        caller=context.caller.get() or None, exc_info=bug,
    )  # fmt: skip


class Authorization:
    """Authenticate the callers of /v1, and require their scopes and limits."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._seconds = seconds
        self._anonymous = not settings.auth_tokens
        self._authenticator = Authenticator(settings.auth_tokens)
        self._caller_limit = CallerLimit(settings.caller_limit)

    def before(self, scope: authentication.Scope, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            if self._anonymous and not FORWARDED.isdisjoint(request.headers):
                raise PermissionDenied("a request that a proxy forwards must have a token: set GATEWAY_AUTH_TOKENS")
            caller = self._authenticator.authenticate(request.headers.get("authorization", ""))
            context.caller.set(caller.name)
            context.scopes.set(frozenset(caller.scopes))
            authentication.require(caller, scope)
            await self._caller_limit.count(caller.name)
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
    max_concurrent: int = MAX_CONCURRENT,
    seconds: float = DEADLINE,
) -> ASGIApp:
    authorization = Authorization(settings, seconds)
    appointments, payments, messages = Appointments(clients), Payments(clients), Messages(clients)
    app = Starlette(
        routes=[
            Route(
                "/v1/appointments/{id}/confirmation",
                authorization.before("send", appointments.confirm),
                methods=["POST"],
            ),
            Route(
                "/v1/appointments/{id}/reminder", authorization.before("send", appointments.remind), methods=["POST"]
            ),
            Route(
                "/v1/payments",
                authorization.by_method(GET=("read", payments.list_payments), POST=("send", payments.create)),
                methods=["GET", "POST"],
            ),
            Route("/v1/payments/{id}", authorization.before("read", payments.get)),
            Route("/v1/emails/{id}", authorization.before("read", messages.get_email)),
            Route("/v1/sms/{id}", authorization.before("read", messages.get_sms)),
            Route("/v1/status", authorization.before("read", Status(settings, clients))),
        ],
        exception_handlers={ServiceError: _problem, HTTPException: _problem, Exception: _problem},
    )
    app.router.redirect_slashes = False  # a redirect would be made of the caller's Host header
    return RequestMiddleware(app, webhooks(settings, database, wake, clock), max_concurrent)


def webhooks(
    settings: Settings, database: Database, wake: Callable[[str], None], clock: Callable[[], float]
) -> dict[str, Webhook]:
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
    found = [
        Webhook("/webhooks/stripe", database, "stripe", stripe, max_bytes=MAX_STRIPE_BYTES, stored=wake),
        Webhook("/webhooks/sendgrid", database, "sendgrid", sendgrid, max_bytes=MAX_SENDGRID_BYTES, stored=wake),
        Webhook("/webhooks/twilio/status", database, "twilio", twilio, max_bytes=MAX_TWILIO_BYTES, stored=wake),
    ]
    return {webhook.path: webhook for webhook in found}


async def _problem(_request: Request, error: Exception) -> Response:
    return answer(error)
