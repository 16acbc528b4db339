"""Assemble the payments service and run it."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database
from services.chassis.lifecycle import run
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.breaker_modes import BreakerModes
from services.chassis.outbound.client import outbound
from services.chassis.outbound.retry import Retry
from services.chassis.queue.admin import queue_admin
from services.chassis.queue.jobs import Queue
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.queue.worker import Worker
from services.chassis.rpc.idempotency import Fingerprints
from services.chassis.rpc.server import Service, serve
from services.chassis.settings import load
from services.payments import listing, store
from services.payments.change_log import ChangeLog
from services.payments.sender import SEND_TIMEOUT, Sender
from services.payments.servicer import PaymentAdminServicer, PaymentServicer
from services.payments.settings import Settings
from services.payments.stripe_provider import StripeProvider
from topsmile.payments.v1 import payments_pb2_grpc as rpc

MIGRATIONS = Path(__file__).with_name("migrations")


class Parts(NamedTuple):
    database: Database
    services: list[Service]
    workers: tuple[Worker, ChangeLog, BreakerModes]
    breaker: CircuitBreaker


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Parts]:
    base = settings.stripe_api_base
    rate_limit = RateLimit(settings.stripe_per_second, burst=max(1, int(settings.stripe_per_second)))
    async with (
        connect(settings.database_url, MIGRATIONS) as database,
        outbound(base, service="stripe", timeout=SEND_TIMEOUT) as http,
    ):
        while await database.run(listing.fill_columns):
            pass
        breaker = CircuitBreaker("stripe")
        provider = StripeProvider(http, base, settings.stripe_secret_key.get_secret_value())
        sender = Sender(database, provider, breaker, Retry())
        worker = Worker(
            database, Queue(store.QUEUE, sender.handle, store.on_discarded, rate_limit=rate_limit), breaker.capacity
        )
        changes, fingerprints = ChangeLog(database), Fingerprints(settings.fingerprint_keys)
        servicer = PaymentServicer(database, worker, sender, changes, fingerprints, livemode=settings.livemode)
        admin = PaymentAdminServicer(database, worker, sender, changes, livemode=settings.livemode)
        package = "topsmile.payments.v1"
        services = [
            Service(f"{package}.PaymentService", rpc.add_PaymentServiceServicer_to_server, servicer, changes.drain),
            Service(f"{package}.PaymentAdminService", rpc.add_PaymentAdminServiceServicer_to_server, admin),
        ]
        queues = await queue_admin(database, [worker], [breaker])
        yield Parts(database, [*services, queues.service], (worker, changes, queues.modes), breaker)


async def main(settings: Settings) -> None:
    async with assembled(settings) as parts:
        details = {"providers": lambda: {"stripe": parts.breaker.state}}
        await serve(settings, parts.database, services=parts.services, workers=parts.workers, details=details)


if __name__ == "__main__":
    run(main, load(Settings))
