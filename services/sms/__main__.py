"""The sms service: python -m services.sms."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from services.brazil.phones import mobile
from services.chassis.lifecycle import run
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.client import outbound
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.rpc.server import Service
from services.chassis.settings import load
from services.messaging.channel import Channel, assemble, run_channel
from services.messaging.provider import Provider
from services.messaging.sender import SEND_TIMEOUT
from services.messaging.store import Store
from services.sms.pepper import Pepper
from services.sms.policy import due_at, policy
from services.sms.rendering import Text
from services.sms.servicer import SmsAdminServicer, SmsServicer
from services.sms.settings import Settings
from services.sms.twilio_provider import TwilioProvider
from topsmile.sms.v1.sms_pb2_grpc import add_SmsAdminServiceServicer_to_server, add_SmsServiceServicer_to_server

MIGRATIONS = Path(__file__).with_name("migrations")


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Channel]:
    base, account, sender = settings.twilio_api_base, settings.twilio_account_sid, settings.twilio_phone_number
    per_second = settings.twilio_per_second
    async with outbound(base, service="twilio", auth=settings.credentials, timeout=SEND_TIMEOUT) as http:
        twilio = TwilioProvider(http, base, account, sender, settings.public_url or "")
        providers = [
            Provider[Text](
                "twilio",
                twilio.send,
                CircuitBreaker("twilio"),
                RateLimit(per_second, burst=max(1, int(per_second))),
                find=lambda text, since: twilio.find(text.recipient, text.body, since),
                # Twilio lists what it takes within seconds, and its callbacks are faster.
                patience=60.0,
                ask_every=10.0,
            )
        ]
        pepper, quiet_hours = Pepper(settings.sms_pepper.get_secret_value()), settings.sms_quiet_hours
        store = Store("sms", "sms", partial(due_at, quiet_hours))
        async with assemble(settings, MIGRATIONS, store, providers, policy(pepper, quiet_hours)) as channel:
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
