"""The email service: python -m services.email."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.chassis.lifecycle import run
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.client import outbound
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.rpc.server import Service
from services.chassis.settings import load
from services.email.rendering import Mail, Renderer
from services.email.sendgrid_provider import SendGridProvider
from services.email.servicer import EmailAdminServicer, EmailServicer
from services.email.settings import Settings
from services.messaging.channel import Channel, assemble, run_channel
from services.messaging.provider import Provider
from services.messaging.sender import SEND_TIMEOUT, Policy
from services.messaging.store import Store
from topsmile.email.v1.email_pb2_grpc import (
    add_EmailAdminServiceServicer_to_server,
    add_EmailServiceServicer_to_server,
)

MIGRATIONS = Path(__file__).with_name("migrations")


@asynccontextmanager
async def assembled(settings: Settings, timeout: float = SEND_TIMEOUT) -> AsyncIterator[Channel]:
    key = {"Authorization": f"Bearer {settings.sendgrid_api_key.get_secret_value()}"}
    renderer = Renderer(settings.from_email)
    async with outbound(settings.sendgrid_api_base, service="sendgrid", headers=key, timeout=timeout) as http:
        sendgrid = SendGridProvider(http, settings.from_email)
        rate_limit = RateLimit(settings.sendgrid_per_second, burst=20)
        # SendGrid cannot be asked about a mail: its events prove that a lost answer was a yes.
        providers = [Provider[Mail]("sendgrid", sendgrid.send, CircuitBreaker("sendgrid"), rate_limit)]

        async with assemble(settings, MIGRATIONS, Store("email", "eml"), providers, Policy(renderer.render)) as channel:
            yield channel


def rpc_services(channel: Channel) -> list[Service]:
    package = "topsmile.email.v1"
    servicer, admin = EmailServicer(channel.outbox), EmailAdminServicer(channel.outbox)
    return [
        Service(f"{package}.EmailService", add_EmailServiceServicer_to_server, servicer),
        Service(f"{package}.EmailAdminService", add_EmailAdminServiceServicer_to_server, admin),
    ]


async def main(settings: Settings) -> None:
    async with assembled(settings) as channel:
        await run_channel(settings, channel, rpc_services(channel))


if __name__ == "__main__":
    run(main, load(Settings))
