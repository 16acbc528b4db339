"""The gateway: HTTP outside, gRPC inside."""

import services.chassis.pid_1  # noqa: F401 - first: it handles SIGTERM

# isort: split
from pathlib import Path

import structlog

from gateway.app import application
from gateway.clients import connected
from gateway.delivery import deliveries
from gateway.inbox import Retention
from gateway.settings import Settings
from gateway.watcher import Watcher
from services.chassis import lifecycle, settings
from services.chassis.database.connect import connect
from services.chassis.http import server
from services.chassis.http.operations import ReadinessDetails, operations
from services.chassis.queue.admin import queue_admin
from services.chassis.rpc import server as rpc
from services.chassis.rpc.health import Readiness

MIGRATIONS = Path(__file__).with_name("migrations")

log = structlog.get_logger()


async def main(config: Settings) -> None:
    async with connect(config.database_url, MIGRATIONS) as database, connected(config) as clients:
        workers = deliveries(database, clients)

        def wake(queue: str) -> None:
            workers[queue].wake()

        admin = await queue_admin(database, list(workers.values()), [service.breaker for service in clients.all])
        readiness = Readiness(database)
        watcher = Watcher(database, clients, wake)
        states = {service.name: lambda service=service: service.breaker.state for service in clients.all}
        details: ReadinessDetails = {**states, "watch": watcher.details}
        async with (
            server.listening(
                operations(config, readiness, details), config.operations_listen, **server.tls(config)
            ) as operations_address,
            readiness.monitored(),
            lifecycle.working([*workers.values(), watcher, Retention(database), admin.modes]) as over,
            rpc.listening(config, readiness, [admin.service], config.gateway_admin_listen) as admin_address,
            server.listening(
                application(config, database, clients, wake),
                config.listen,
                hosts={config.public_host},
                **server.tls(config),
            ) as address,
        ):
            log.info("listening", http=str(address), operations=str(operations_address), admin=str(admin_address))
            await over.wait()
            log.info("draining", grace=lifecycle.GRACE)
            readiness.drain()
    log.info("stopped")


if __name__ == "__main__":
    lifecycle.run(main, settings.load(Settings))
