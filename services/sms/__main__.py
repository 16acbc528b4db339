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
from services.chassis.queue.jobs import Job
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.rpc.server import Service
from services.chassis.settings import load
from services.messaging.channel import Channel, assemble, run_channel
from services.messaging.provider import Provider
from services.messaging.record import MessageRecord
from services.messaging.requests import REMINDER, NewMessage, milliseconds, time_of
from services.messaging.sender import SEND_TIMEOUT, Policy
from services.messaging.store import Due, Store
from services.sms.message import CODE
from services.sms.pepper import Pepper
from services.sms.provider import Text
from services.sms.quiet_hours import QuietHours
from services.sms.servicer import SmsAdminServicer, SmsServicer
from services.sms.settings import Settings
from services.sms.twilio_provider import TwilioProvider
from topsmile.sms.v1 import sms_pb2 as pb
from topsmile.sms.v1.sms_pb2_grpc import add_SmsAdminServiceServicer_to_server, add_SmsServiceServicer_to_server

MIGRATIONS = Path(__file__).with_name("migrations")
#: What Twilio allows as a text's validity, in seconds; below 5 it sends nothing at all.
MIN_VALIDITY, MAX_VALIDITY = 10, 36_000


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
        policy = Policy(
            partial(render, Pepper(settings.sms_pepper.get_secret_value())),
            hold=partial(quiet_for, settings.sms_quiet_hours),
            prefers_twice=lambda record: record.template == CODE,
        )
        store = Store("sms", "sms", partial(due_at, settings.sms_quiet_hours))
        async with assemble(settings, MIGRATIONS, store, providers, policy) as channel:
            yield channel


def render(pepper: Pepper, record: MessageRecord, job: Job) -> Text:
    body = pb.SendSmsRequest.FromString(job.payload).body
    valid_for = min(max((record.expires_at - record.now) // 1000, MIN_VALIDITY), MAX_VALIDITY)
    return Text(
        job.id, job.claims, record.recipient, pepper.unseal(body) if record.template == CODE else body, valid_for
    )


def due_at(quiet_hours: QuietHours, message: NewMessage, asked: int, now: int) -> Due:
    """Keep a reminder out of the recipient's night."""
    if message.template != REMINDER or message.expires_at is None:
        return Due(asked)
    allowed = quiet_hours.allowed_at(
        time_of(asked), now=time_of(now), recipient=message.recipient, start_at=message.expires_at
    )
    return Due(milliseconds(allowed), "" if allowed == time_of(asked) else "QUIET_HOURS")


def quiet_for(quiet_hours: QuietHours, record: MessageRecord) -> tuple[float, str]:
    """Return the rest of the recipient's night, for a reminder that an outage has pushed into it."""
    if record.template != REMINDER:
        return 0.0, ""
    now, start_at = time_of(record.now), time_of(record.expires_at)
    allowed = quiet_hours.allowed_at(now, now=now, recipient=record.recipient, start_at=start_at)
    return (milliseconds(allowed) - record.now) / 1000, "QUIET_HOURS"


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
