"""Starting, draining and stopping: the same for a process that speaks gRPC and for one that speaks HTTP."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

import structlog

from services.chassis import logs
from services.chassis.settings import ProcessSettings

GRACE = 10.0  # seconds for running calls to finish
#: Seconds after which a busy thread lets another on. SQLite's writer comes off with each statement: at Python's own
#: 5 ms, an event loop with nothing but refusals to do would leave it a few hundred statements a second.
TURN = 0.0005

log = structlog.get_logger()


S = TypeVar("S", bound=ProcessSettings)


class Worker(Protocol):
    async def run(self) -> None: ...

    def stop(self) -> None:
        """Take nothing new; `run` returns when what runs is finished."""


def run(main: Callable[[S], Coroutine[Any, Any, None]], settings: S) -> None:
    """
    Run a process: its logs first, then its main coroutine, on uvloop where there is one.

    It leaves with 0 when SIGTERM or SIGINT ended it, also while it starts, and with 1 when it could not go on.
    """
    logs.configure(settings.process.lower(), settings.log_level)
    sys.setswitchinterval(TURN)
    loop_factory = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - does not exist on Windows

        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_until_stopped(main(settings)))
    except SystemExit as refusal:
        if not isinstance(refusal.code, str):
            raise
        log.critical("process.refused_to_start", why=refusal.code)
        raise SystemExit(1) from None


async def _until_stopped(main: Coroutine[Any, Any, None]) -> None:
    """Run the coroutine. Until `working` takes over, a signal to stop cancels it, whatever it waits for."""
    running = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        running.cancel()

    with suppress(NotImplementedError):  # Windows has no handlers in its event loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("stopped")


@asynccontextmanager
async def working(workers: Sequence[Worker]) -> AsyncIterator[asyncio.Event]:
    """
    Run the workers while the body runs, and let them finish afterwards.

    The event says that it is over: by SIGTERM, by SIGINT, or because a worker ended of its own accord. That is never
    right: the process leaves with exit code 1, so that whoever supervises it starts another.
    """
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    for task in tasks:
        task.add_done_callback(lambda _: over.set())
    try:
        yield over
    finally:
        failed = [task for task in tasks if task.done()]
        for worker in workers:
            worker.stop()
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=GRACE)
            for task in slow:  # its leases bring the jobs back
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        log.critical("worker.ended", exc_info=None if task.cancelled() else task.exception())
    if failed:
        raise SystemExit(1)
