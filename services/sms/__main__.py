"""The parts of the sms service, put together."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from services.brazil.phones import mobile
from services.chassis.breaker import CircuitBreaker
from services.chassis.database import Database, connect
from services.chassis.idempotency import Fingerprints
from services.chassis.jobs import Queue
from services.chassis.lifecycle import run
from services.chassis.outbound import outbound
from services.chassis.pace import Pace
from services.chassis.server import Service, serve
from services.chassis.settings import load
from services.chassis.worker import Worker
from services.sms import store
from services.sms.pepper import Pepper
from services.sms.sender import ACT, Sender
from services.sms.servicer import SmsAdminServicer, SmsServicer
from services.sms.settings import Settings
from services.sms.twilio_provider import TwilioProvider
from topsmile.sms.v1.sms_pb2_grpc import add_SmsAdminServiceServicer_to_server, add_SmsServiceServicer_to_server

MIGRATIONS = Path(__file__).with_name("migrations")


class Parts(NamedTuple):
    database: Database
    services: list[Service]
    worker: Worker
    breaker: CircuitBreaker


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Parts]:
    base, account, sender = settings.twilio_api_base, settings.twilio_account_sid, settings.twilio_phone_number
    pepper = Pepper(settings.sms_pepper.get_secret_value())
    pace = Pace(settings.twilio_per_second, burst=max(1, int(settings.twilio_per_second)))
    numbers = partial(mobile, regions=settings.sms_regions, magic=settings.magic_numbers)
    async with (
        connect(settings.database_url, MIGRATIONS) as database,
        outbound(base, service="twilio", auth=settings.credentials, timeout=ACT) as http,
    ):
        breaker = CircuitBreaker("twilio")
        provider = TwilioProvider(http, base, account, sender, settings.public_url or "")
        handler = Sender(database, provider, breaker, pepper, settings.sms_quiet_hours).handle
        worker = Worker(database, Queue(store.QUEUE, handler, store.given_up, pace=pace), breaker.room)
        servicer = SmsServicer(
            database,
            worker.wake,
            pepper,
            fingerprints=Fingerprints(settings.fingerprint_keys),
            numbers=numbers,
            quiet_hours=settings.sms_quiet_hours,
        )
        admin = SmsAdminServicer(database)
        services = [
            Service("topsmile.sms.v1.SmsService", add_SmsServiceServicer_to_server, servicer),
            Service("topsmile.sms.v1.SmsAdminService", add_SmsAdminServiceServicer_to_server, admin),
        ]
        yield Parts(database, services, worker, breaker)


async def main(settings: Settings) -> None:
    async with assembled(settings) as parts:
        facts = {"provider": lambda: parts.breaker.state}
        await serve(settings, parts.database, services=parts.services, workers=[parts.worker], facts=facts)


if __name__ == "__main__":
    run(main, load(Settings))
