"""
grpc.health.v1: SERVING while this process can store what it accepts.

A provider's outage does not make a service NOT_SERVING: the service still accepts messages, which wait.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import NotFound, ServiceError, Unavailable

CHECK_INTERVAL = 5.0  # seconds
CACHE_SECONDS = 1.0  # the health endpoints need no token, so anyone may call them often

log = structlog.get_logger()


class Store(Protocol):
    async def ready(self) -> None:
        """Write to the database. Raises errors.Unavailable where it takes no writes now."""


class Readiness:
    """Whether this process takes work. Draining never ends."""

    def __init__(self, database: Store) -> None:
        self._database = database
        self._changed = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None
        self._checked_at = -CACHE_SECONDS
        self.ready = False
        self.draining = False

    async def check(self) -> None:
        """Write to the database now. Raises the error of the write."""
        self._raise_if_draining()
        try:
            await self._database.ready()
        except ServiceError:
            self._set(ready=False)
            raise
        self._set(ready=True)

    async def check_cached(self) -> None:
        """Raise the result of a check that is at most a second old. One check at a time serves all callers."""
        self._raise_if_draining()
        loop = asyncio.get_running_loop()
        if self._checking is None or (self._checking.done() and loop.time() - self._checked_at >= CACHE_SECONDS):
            self._checking = loop.create_task(self.check())
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)  # a cancelled caller must not cancel the check of the others

    def _checked(self, checking: asyncio.Task[None]) -> None:
        self._checked_at = checking.get_loop().time()
        if not checking.cancelled():
            checking.exception()  # mark the exception as retrieved: its callers may be gone

    def _raise_if_draining(self) -> None:
        if self.draining:
            raise Unavailable("this process is stopping")

    def drain(self) -> None:
        self.draining = True
        self._set(ready=False)

    def _set(self, *, ready: bool) -> None:
        if ready != self.ready or self.draining:
            self.ready = ready and not self.draining
            log.info("readiness.changed", ready=self.ready, draining=self.draining)
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    @asynccontextmanager
    async def monitored(self) -> AsyncIterator[None]:
        """Check the database regularly while the body runs."""
        with suppress(ServiceError):
            await self.check()
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            with suppress(ServiceError):
                await self.check()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    def __init__(self, readiness: Readiness, services: Iterable[str]) -> None:
        self._readiness = readiness
        self._services = {"", *services}

    async def Check(self, request: Any, _context: object) -> Any:  # noqa: N802 - the contract's name
        if request.service not in self._services:
            raise NotFound("the service must be one that this process serves")
        return self._response(request.service)

    async def Watch(self, request: Any, _context: object) -> AsyncIterator[Any]:  # noqa: N802 - the contract's name
        """Send each change, and end once NOT_SERVING is sent: open streams delay the stop of the server."""
        sent = None
        while sent is None or not self._readiness.draining:
            response = self._response(request.service)
            if response != sent:
                yield response
                sent = response
                continue  # the state may have changed during the write
            await self._readiness.changed()
        if self._response(request.service) != sent:
            yield self._response(request.service)

    def _response(self, service: str) -> Any:
        status = "SERVING" if self._readiness.ready else "NOT_SERVING"
        return health_pb2.HealthCheckResponse(status=status if service in self._services else "SERVICE_UNKNOWN")
