"""The sms service: python -m services.sms."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from services.brazil.phones import mobile
from services.chassis.lifecycle import run
from services.chassis.rpc.server import Service
from services.chassis.settings import load
from services.messaging.channel import Channel, assemble, run_channel
from services.messaging.store import Store
from services.sms.pepper import Pepper
from services.sms.policy import due_at, policy
from services.sms.servicer import SmsAdminServicer, SmsServicer
from services.sms.settings import Settings
from services.sms.twilio_provider import twilio
from topsmile.sms.v1.sms_pb2_grpc import add_SmsAdminServiceServicer_to_server, add_SmsServiceServicer_to_server

MIGRATIONS = Path(__file__).with_name("migrations")


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Channel]:
    pepper, quiet_hours = Pepper(settings.sms_pepper.get_secret_value()), settings.sms_quiet_hours
    store = Store("sms", "sms", partial(due_at, quiet_hours))
    async with (
        twilio(settings) as provider,
        assemble(settings, MIGRATIONS, store, [provider], policy(pepper, quiet_hours)) as channel,
    ):
        yield channel


def rpc_services(channel: Channel, settings: Settings) -> list[Service]:
    package, pepper = "topsmile.sms.v1", Pepper(settings.sms_pepper.get_secret_value())
    numbers = partial(mobile, regions=settings.sms_regions, magic=settings.magic_numbers)
    servicer, admin = SmsServicer(channel.outbox, pepper, numbers), SmsAdminServicer(channel.outbox)
    return [
        Service(f"{package}.SmsService", add_SmsServiceServicer_to_server, servicer),
        Service(f"{package}.SmsAdminService", add_SmsAdminServiceServicer_to_server, admin),
    ]


async def main(settings: Settings) -> None:
    async with assembled(settings) as channel:
        await run_channel(settings, channel, rpc_services(channel, settings))


if __name__ == "__main__":
    run(main, load(Settings))
