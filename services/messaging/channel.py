"""The parts of a channel's process, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database
from services.chassis.outbound.retry import Retry
from services.chassis.queue.admin import QueueAdmin, queue_admin
from services.chassis.queue.worker import Worker
from services.chassis.rpc.idempotency import Fingerprints
from services.chassis.rpc.server import Service, serve
from services.chassis.settings import ProcessSettings
from services.messaging.outbox import Outbox
from services.messaging.provider import Provider
from services.messaging.sender import Policy, Sender
from services.messaging.store import SCHEMA, Store

C = TypeVar("C")


class Channel(NamedTuple):
    database: Database
    outbox: Outbox
    worker: Worker
    providers: Sequence[Provider[Any]]
    admin: QueueAdmin


@asynccontextmanager
async def assemble(
    settings: ProcessSettings,
    migrations: Path,
    store: Store,
    providers: Sequence[Provider[C]],
    policy: Policy[C],
) -> AsyncIterator[Channel]:
    """Open the channel's database and connect its parts."""
    async with connect(settings.database_url, SCHEMA, migrations) as database:
        worker = Worker(database, Sender(database, store, providers, policy, Retry()).queue())
        fingerprints = Fingerprints(settings.fingerprint_keys)
        outbox = Outbox(database, store, fingerprints, providers, worker.wake)
        admin = await queue_admin(database, [worker], [provider.breaker for provider in providers])
        yield Channel(database, outbox, worker, providers, admin)


async def run_channel(settings: ProcessSettings, channel: Channel, services: Sequence[Service]) -> None:
    """Serve until the process is told to stop; readiness shows the breaker of each provider."""
    details = {"providers": lambda: {provider.name: provider.breaker.state for provider in channel.providers}}
    services = [*services, channel.admin.service]
    workers = (channel.worker, channel.admin.modes)
    await serve(settings, channel.database, services=services, workers=workers, details=details)
