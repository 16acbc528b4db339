"""The email service: python -m services.email."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.chassis.lifecycle import run
from services.chassis.rpc.server import Service
from services.chassis.settings import load
from services.email.rendering import Renderer
from services.email.sendgrid_provider import sendgrid
from services.email.servicer import EmailAdminServicer, EmailServicer
from services.email.settings import Settings
from services.messaging.channel import Channel, assemble, run_channel
from services.messaging.sender import SEND_TIMEOUT, Policy
from services.messaging.store import Store
from topsmile.email.v1.email_pb2_grpc import (
    add_EmailAdminServiceServicer_to_server,
    add_EmailServiceServicer_to_server,
)

MIGRATIONS = Path(__file__).with_name("migrations")


@asynccontextmanager
async def assembled(settings: Settings, timeout: float = SEND_TIMEOUT) -> AsyncIterator[Channel]:
    policy = Policy(Renderer(settings.from_email).render)
    async with (
        sendgrid(settings, timeout) as provider,
        assemble(settings, MIGRATIONS, Store("email", "eml"), [provider], policy) as channel,
    ):
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
