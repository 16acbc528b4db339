"""How every process starts, drains and stops, with gRPC or HTTP."""

import asyncio
import gc
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
#: Allocations until a collection of the youngest objects, and collections until one of the next older ones.
GC_THRESHOLDS = (10_000, 20, 20)

log = structlog.get_logger()


S = TypeVar("S", bound=ProcessSettings)


class Worker(Protocol):
    async def run(self) -> None: ...

    def stop(self) -> None:
        """Claim no new work; `run` returns when the current work ends."""


def run(main: Callable[[S], Coroutine[Any, Any, None]], settings: S) -> None:
    """
    Configure the logs and run the main coroutine of a process, on uvloop where it exists.

    The exit code is 0 after SIGTERM or SIGINT, also during the start, and 1 where the process cannot go on.
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
        log.critical("process.refused_to_start", reason=refusal.code)
        raise SystemExit(1) from None


async def _until_stopped(main: Coroutine[Any, Any, None]) -> None:
    """Run the coroutine. SIGTERM and SIGINT cancel it, until `working` replaces their handlers."""
    running = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        running.cancel()

    with suppress(NotImplementedError):  # event loops on Windows take no handlers
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
    Run the workers while the body runs, then let them finish. Yield an event that is set when the body must end.

    SIGTERM, SIGINT and the end of a worker set it. A worker must not end by itself: then the exit code is 1, so that
    the supervisor starts a new process.
    """
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    # Modules and servers live as long as the process, and a call leaves few cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
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
            for task in slow:  # the jobs run again when their leases expire
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        log.critical("worker.ended", exc_info=None if task.cancelled() else task.exception())
    if failed:
        raise SystemExit(1)
