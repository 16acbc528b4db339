"""The public listener: authorization and the routes."""

import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.appointments import Appointments
from gateway.clients import Clients
from gateway.messages import Messages
from gateway.middleware import RequestMiddleware
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
from services.chassis import context
from services.chassis.database.transactions import Database
from services.chassis.errors import PermissionDenied, ServiceError
from services.chassis.http.problems import answer
from services.chassis.outbound import deadline
from services.chassis.rpc import authentication
from services.chassis.rpc.authentication import Authenticator
from services.chassis.rpc.limits import CallerLimit

DEADLINE = 10.0  # seconds for a whole request
MAX_CONCURRENT = 500  # requests of each kind that run together; more wait for a turn
#: Headers that a proxy adds: its clients are not on this machine's loopback.
FORWARDED = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}

Endpoint = Callable[[Request], Awaitable[Response]]


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
