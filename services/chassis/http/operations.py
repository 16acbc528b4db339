"""
The operations listener: /healthz (alive), /readyz (takes writes), /metrics, and routes that a process adds.

On loopback it is open. Elsewhere all but the two for health need a token with the scope admin.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.chassis.errors import PermissionDenied, ServiceError
from services.chassis.http import problems
from services.chassis.metrics import queues
from services.chassis.rpc.authentication import Authenticator, is_loopback, require
from services.chassis.rpc.health import Readiness
from services.chassis.settings import ProcessSettings

log = structlog.get_logger()

OPEN = {"/healthz", "/readyz"}

#: Values that /readyz shows and that do not decide about readiness: {"providers": lambda: {"stripe": breaker.state}}.
ReadinessDetails = Mapping[str, Callable[[], object]]


def operations(
    settings: ProcessSettings, readiness: Readiness, details: ReadinessDetails, routes: Sequence[BaseRoute] = ()
) -> Starlette:
    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        shown = {name: read() for name, read in details.items()} | {"queues": queues}
        try:
            await readiness.check_cached()
        except ServiceError as error:
            return JSONResponse({"status": "not ready", "reason": error.reason, **shown}, 503)
        return JSONResponse({"status": "ready", **shown})

    authorized = not is_loopback(settings.operations_listen.host)
    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), *routes],
        middleware=[Middleware(Authorization, settings=settings)] if authorized else [],
        exception_handlers={HTTPException: _problem},
    )


async def _problem(_request: Request, error: Exception) -> Response:
    return problems.answer(error)


async def metrics(_request: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class Authorization:
    """Require the scope admin, except for the health routes."""

    def __init__(self, app: ASGIApp, settings: ProcessSettings) -> None:
        self._app = app
        self._authenticator = Authenticator(settings.auth_tokens) if settings.auth_tokens else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: Callable[[Scope, Receive, Send], Awaitable[None]] = self._app
        if scope["path"] not in OPEN:
            try:
                self._authorize(Request(scope).headers.get("authorization", ""))
            except ServiceError as refusal:
                log.warning("operations.refused", reason=refusal.reason)
                app = problems.answer(refusal)
        await app(scope, receive, send)

    def _authorize(self, authorization: str) -> None:
        if self._authenticator is None:
            raise PermissionDenied("must have a token off loopback, and this process has none")
        require(self._authenticator.authenticate(authorization), "admin")
