"""
grpc.health.v1: SERVING while this process can store what it accepts.

A provider that is down never turns a service NOT_SERVING: its messages are accepted and wait.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import NotFound, ServiceError, Unavailable

CHECK_INTERVAL = 5.0  # seconds
CACHE_SECONDS = 1.0  # seconds for which an answer is told again: whoever may ask has no token, and may ask often

log = structlog.get_logger()


class Store(Protocol):
    async def ready(self) -> None:
        """Store something; raises errors.Unavailable when that is not possible now."""


class Readiness:
    """Whether to send work here. Draining is for good."""

    def __init__(self, database: Store) -> None:
        self._database = database
        self._changed = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None
        self._checked_at = -CACHE_SECONDS
        self.ready = False
        self.draining = False

    async def check(self) -> None:
        """Try to store something now; raises what stands in the way."""
        self._refuse_while_draining()
        try:
            await self._database.ready()
        except ServiceError:
            self._turn(ready=False)
            raise
        self._turn(ready=True)

    async def check_cached(self) -> None:
        """Raise what `check` found at most a second ago. However many ask, one check runs at a time."""
        self._refuse_while_draining()
        loop = asyncio.get_running_loop()
        if self._checking is None or (self._checking.done() and loop.time() - self._checked_at >= CACHE_SECONDS):
            self._checking = loop.create_task(self.check())
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)  # one who goes away does not end it for the others

    def _checked(self, checking: asyncio.Task[None]) -> None:
        self._checked_at = checking.get_loop().time()
        if not checking.cancelled():
            checking.exception()  # whoever asked may have gone

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Unavailable("this process is being stopped")

    def drain(self) -> None:
        self.draining = True
        self._turn(ready=False)

    def _turn(self, *, ready: bool) -> None:
        if ready != self.ready or self.draining:
            self.ready = ready and not self.draining
            log.info("readiness", ready=self.ready, draining=self.draining)
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    @asynccontextmanager
    async def monitored(self) -> AsyncIterator[None]:
        """Keep looking whether the database takes writes."""
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
            raise NotFound("no such service here")
        return self._answer(request.service)

    async def Watch(self, request: Any, _context: object) -> AsyncIterator[Any]:  # noqa: N802 - the contract's name
        """End the stream after telling that we drain: an open one would hold the server for its whole grace."""
        told = None
        while told is None or not self._readiness.draining:
            answer = self._answer(request.service)
            if answer != told:
                yield answer
                told = answer
                continue  # it may have changed while that was written
            await self._readiness.changed()
        if self._answer(request.service) != told:
            yield self._answer(request.service)

    def _answer(self, service: str) -> Any:
        status = "SERVING" if self._readiness.ready else "NOT_SERVING"
        return health_pb2.HealthCheckResponse(status=status if service in self._services else "SERVICE_UNKNOWN")
