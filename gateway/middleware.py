"""What happens around every request of the public listener."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from functools import lru_cache

import structlog
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.bodies import CLOSE
from gateway.webhooks import Webhook
from services.chassis import context, metrics
from services.chassis.errors import ServiceError, Unavailable
from services.chassis.http.problems import Refusal, answer

MAX_TURN_WAIT = 2.0  # seconds until a request without a turn is shed
MAX_SLOW = 2000  # requests of each kind whose senders are slow; they take no turn
SMALL = 64 << 10  # bytes of a body that are always taken
LARGE = 64 << 20  # bytes of all bodies together, beyond what is small of each

log = structlog.get_logger()


class Turns:
    """
    Let so many requests run together; the others wait, first come, first served.

    The client of a request that waits sends nothing else meanwhile, so an overload costs little. An early refusal costs
    as much as a fifth of an answer, and clients would send the next request at once.
    """

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._running = 0
        self._slow = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def take(self) -> None:
        """Wait for a turn; raise Unavailable after MAX_TURN_WAIT, or at once while too many senders are slow."""
        if self._slow >= MAX_SLOW:
            raise shedding()
        await self._take()

    async def _take(self) -> None:
        if self._running < self._max_concurrent:
            self._running += 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(turn)
        expiry = loop.call_later(MAX_TURN_WAIT, _expire, turn)
        taken = await turn
        expiry.cancel()
        if not taken:
            raise shedding()

    def give_back(self) -> None:
        self._running -= 1
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._running < self._max_concurrent:
            turn = self._waiting.popleft()
            if not turn.done():  # it has expired
                self._running += 1
                turn.set_result(True)

    async def receive(self, receive: Receive) -> Message:
        """Receive without a turn, so that a slow sender does not keep others from theirs."""
        self._running -= 1
        self._slow += 1
        if self._waiting:  # call_soon: a body that is already here comes before the turn is given away
            asyncio.get_running_loop().call_soon(self._pass_on)
        try:
            message = await receive()
        finally:
            self._running += 1
            self._slow -= 1
        if self._running > self._max_concurrent:
            self._running -= 1
            try:
                await self._take()
            except Unavailable:
                self._running += 1  # the request has not ended yet
                raise
        return message


class RequestMiddleware:
    """
    Give each request a correlation id, a log line and a turn; hide the text of bugs.

    Webhooks are found by their path alone: the framework's routing costs more than their signature.

    Webhooks, payments and everything else have turns of their own: calls that wait for one service must not hold up
    the events of the providers, nor the calls to other services.
    """

    def __init__(self, app: ASGIApp, webhooks: Mapping[str, Webhook], max_concurrent: int) -> None:
        self._app = app
        self._webhooks = webhooks
        self._turns = {kind: Turns(max_concurrent) for kind in ("webhooks", "payments", "others")}
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        webhook = self._webhooks.get(scope["path"])
        kind = "webhooks" if webhook else "payments" if scope["path"].startswith("/v1/payments") else "others"
        turns = self._turns[kind]
        try:
            await turns.take()
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
            message = await turns.receive(receive)
            before, taken = taken, taken + len(message.get("body", b""))
            self._large += max(0, taken - SMALL) - max(0, before - SMALL)
            if taken > SMALL and self._large > LARGE:
                raise shedding()
            return message

        try:
            self._require_host(scope)
            if webhook is not None:
                scope["route"] = webhook
            await (webhook or self._app)(scope, counting, echoing)
        except Exception as error:  # noqa: BLE001 - the one place that keeps a bug's text from the outside
            bug = None if isinstance(error, (ServiceError, Refusal)) else error
            if not status:
                await answer(error)(scope, receive, echoing)
        finally:
            turns.give_back()
            self._large -= max(0, taken - SMALL)
            _log_request(scope, status, time.monotonic() - started, bug)

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
