"""Follows the payments' changes and turns them into jobs, each change and the cursor behind it in one transaction."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc
import structlog

from gateway import inbox
from gateway.clients import Clients
from gateway.fanout import Notice, notices
from services.chassis import context, metrics
from services.chassis.database.transactions import Database
from services.chassis.errors import InvalidRequest, OutOfRange, ServiceError
from services.chassis.queue import jobs
from topsmile.payments.v1 import payments_pb2

STREAM = "payments"
#: Seconds. The contract promises a heartbeat every 30.
SILENCE = 75.0
MIN_BACKOFF, MAX_BACKOFF = 0.2, 10.0
#: Seconds that a replica stands aside when another one has moved the cursor.
ASIDE = 5.0

log = structlog.get_logger()


class OvertakenError(Exception):
    """Another replica has dealt with the change and moved the cursor."""


async def remember(before: str, after: str, found: Sequence[Notice], trace: str) -> None:
    if not await inbox.advance(STREAM, before, after):
        raise OvertakenError
    for notice in found:
        await jobs.add(notice.queue, notice.key, notice.request.SerializeToString(), trace=trace)


class Watcher:
    """One of several replicas may run it: the cursor is compared before it is set, and the jobs' ids are the facts'."""

    def __init__(self, database: Database, clients: Clients, wake: Callable[[str], None]) -> None:
        self._database = database
        self._clients = clients
        self._wake = wake
        self._stopped = asyncio.Event()
        self._interruption: str | None = None  #: Until something is received again.
        self._restart: str | None = None

    def details(self) -> object:
        """Tell an operator whether changes become notices now, and why the cursor was refused last."""
        state = "INTERRUPTED" if self._interruption else "FOLLOWING"
        return {"state": state, "reason": self._interruption, "started_over": self._restart}

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        failures = 0
        while not stopped.done():
            following = asyncio.create_task(self._follow())
            await asyncio.wait({stopped, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
            failures, pause = await self._after(following, failures)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopped), pause)

    async def _after(self, following: "asyncio.Task[bool]", failures: int) -> tuple[int, float]:
        """How often it failed in a row, and how long to wait before it goes on; a bug goes up and ends the process."""
        try:
            failures = 0 if await following else failures + 1
        except asyncio.CancelledError:
            return failures, 0.0
        except OvertakenError:
            return 0, ASIDE * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        except ServiceError as error:
            failures += 1
            self._interruption = error.reason
            log.warning("watcher.interrupted", reason=error.reason, failures=failures)
        ceiling = min(MAX_BACKOFF, MIN_BACKOFF * 2**failures)
        return failures, random.uniform(MIN_BACKOFF, ceiling)  # noqa: S311 - no secret

    async def _follow(self) -> bool:
        """Follow until the stream ends; True if anything came. Raises ServiceErrors and OvertakenError."""
        cursor = await self._database.read(inbox.cursor_of, STREAM)
        context.adopt("", "")
        request = payments_pb2.WatchPaymentsRequest(cursor=cursor)
        call = self._clients.payment_stub.WatchPayments(request, metadata=self._clients.payments.metadata())
        received = False
        try:
            while (response := await self._next(call)) is not None:
                cursor, received = await self._take(cursor, response), True
                self._interruption = None
        except (OutOfRange, InvalidRequest) as refusal:
            # From the oldest change: what nobody was told of is told, and the keys of what was sent are kept for longer
            # than the changes are, so nothing is told twice.
            self._restart = refusal.reason
            metrics.watch_restarts_total.labels(refusal.reason).inc()
            log.exception("watcher.started_over", reason=refusal.reason, cursor=cursor)
            await self._database.run(inbox.advance, STREAM, cursor, "")
        finally:
            call.cancel()
        return received

    async def _next(
        self, call: "grpc.aio.UnaryStreamCall[payments_pb2.WatchPaymentsRequest, payments_pb2.WatchPaymentsResponse]"
    ) -> payments_pb2.WatchPaymentsResponse | None:
        """Read the next response; None when the stream has ended, or has been silent for longer than promised."""
        try:
            async with asyncio.timeout(SILENCE):
                response = await call.read()
        except TimeoutError:
            return None
        except grpc.aio.AioRpcError as error:
            raise self._clients.payments.named(error) from error
        return response if isinstance(response, payments_pb2.WatchPaymentsResponse) else None

    async def _take(self, cursor: str, response: payments_pb2.WatchPaymentsResponse) -> str:
        found = list(notices(response.change)) if response.HasField("change") else []
        if found or response.cursor != cursor:
            with context.restored(response.change.correlation_id):
                trace = context.trace(response.change.payment.caller)
                await self._database.run(remember, cursor, response.cursor, found, trace)
                for notice in found:
                    log.info("notice.queued", queue=notice.queue, job=notice.key)
        for notice in found:
            self._wake(notice.queue)
        return response.cursor
