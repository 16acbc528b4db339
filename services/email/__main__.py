"""The email service: python -m services.email."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from services.chassis.breaker import CircuitBreaker
from services.chassis.database import connect
from services.chassis.idempotency import Fingerprints
from services.chassis.lifecycle import run
from services.chassis.outbound import outbound
from services.chassis.pace import Pace
from services.chassis.retry import Retry
from services.chassis.server import Service, serve
from services.chassis.settings import load
from services.chassis.worker import Worker
from services.email.rendering import Renderer
from services.email.sender import ACT, Sender
from services.email.sendgrid_provider import SendGridProvider
from services.email.servicer import EmailAdminServicer, EmailServicer
from services.email.settings import Settings
from services.email.store import MIGRATIONS
from topsmile.email.v1.email_pb2_grpc import (
    add_EmailAdminServiceServicer_to_server,
    add_EmailServiceServicer_to_server,
)


async def main(settings: Settings) -> None:
    key = {"Authorization": f"Bearer {settings.sendgrid_api_key.get_secret_value()}"}
    async with (
        connect(settings.database_url, MIGRATIONS) as database,
        outbound(settings.sendgrid_api_base, service="sendgrid", headers=key, timeout=ACT) as http,
    ):
        breaker = CircuitBreaker("sendgrid")
        provider = SendGridProvider(http, settings.from_email)
        sender = Sender(database, provider, breaker, Renderer(settings.from_email), Retry())
        worker = Worker(database, sender.queue(Pace(settings.sendgrid_per_second, burst=20)), breaker.room)
        await serve(
            settings,
            database,
            services=[
                Service(
                    "topsmile.email.v1.EmailService",
                    add_EmailServiceServicer_to_server,
                    EmailServicer(database, worker.wake, Fingerprints(settings.fingerprint_keys)),
                ),
                Service(
                    "topsmile.email.v1.EmailAdminService",
                    add_EmailAdminServiceServicer_to_server,
                    EmailAdminServicer(database),
                ),
            ],
            workers=[worker],
            facts={"provider": lambda: breaker.state},
        )


if __name__ == "__main__":
    run(main, load(Settings))
