"""
Four queues in PostgreSQL empty themselves: python -m bench.peers.queues NAME DATABASE_URL COUNT POSTMASTER_PID

Jobs that do nothing are added first, which does not count; then one worker runs them, twenty at a time. Each peer is
imported here by name, since each runs on a Python of its own.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from bench.running import cpu_seconds

MAX_CONCURRENT = 20


class Stopwatch:
    """Counts the jobs that have run, and what it took: this process and the database's."""

    def __init__(self, count: int, postmaster: int) -> None:
        self.count = count
        self._pids = (os.getpid(), postmaster)
        self._run = itertools.count(1)
        self.finished = asyncio.Event()

    async def nothing(self, *_job: Any, **_more: Any) -> None:
        if next(self._run) == self.count:
            self.finished.set()

    async def measure(self, work: Callable[[], Awaitable[object]]) -> None:
        cpu, began = cpu_seconds(*self._pids), time.monotonic()
        await work()
        seconds = time.monotonic() - began
        await asyncio.sleep(0.1)  # the database's processes have been counted when they have ended, too
        if not self.finished.is_set():
            raise SystemExit("some jobs have not run")
        used = (cpu_seconds(*self._pids) - cpu) * 1e6 / self.count
        print(json.dumps({"cpu_ms_per_1000": used, "per_second": self.count / seconds}))


async def ours(url: str, watch: Stopwatch) -> None:
    database_of, jobs, worker_of = map(import_module, [f"services.chassis.{n}" for n in ("database", "jobs", "worker")])

    async def handler(_job: Any, _begin_act: Any) -> Any:
        await watch.nothing()
        return jobs.Complete()

    async def add_all() -> None:
        for number in range(watch.count):
            await jobs.add("bench", f"job-{number:06}", b"{}")

    import_module("services.chassis.logs").configure("bench", "WARNING")  # the others say nothing of a job either
    async with database_of.connect(url) as database:
        await database.run(add_all)
        worker = worker_of.Worker(database, jobs.Queue("bench", handler, watch.nothing, concurrency=MAX_CONCURRENT))

        async def work() -> None:
            running = asyncio.create_task(worker.run())
            await watch.finished.wait()
            worker.stop()
            await running

        await watch.measure(work)


async def procrastinate(url: str, watch: Stopwatch) -> None:
    library = import_module("procrastinate")
    app = library.App(connector=library.PsycopgConnector(conninfo=url))
    task = app.task(name="nothing")(watch.nothing)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await task.batch_defer_async(*({} for _ in range(watch.count)))
        await watch.measure(lambda: app.run_worker_async(concurrency=MAX_CONCURRENT, wait=False))


async def pgqueuer(url: str, watch: Stopwatch) -> None:
    library, asyncpg = import_module("pgqueuer"), import_module("asyncpg")
    types = import_module("pgqueuer.types")
    async with asyncpg.create_pool(url, min_size=2, max_size=10) as pool:
        queue = library.PgQueuer(library.AsyncpgPoolDriver(pool))
        await queue.qm.queries.install()
        await queue.qm.queries.enqueue(["nothing"] * watch.count, [None] * watch.count, [0] * watch.count)

        async def nothing(_job: Any) -> None:
            await watch.nothing()

        queue.qm.entrypoint("nothing")(nothing)
        drain = types.QueueExecutionMode.drain
        await watch.measure(
            lambda: queue.qm.run(mode=drain, batch_size=MAX_CONCURRENT // 2, max_concurrent_tasks=MAX_CONCURRENT)
        )


async def oban(url: str, watch: Stopwatch) -> None:
    library, schema = import_module("oban"), import_module("oban.schema")
    nothing = type("Nothing", (), {"process": watch.nothing})
    worker = library.worker(queue="default")(nothing)
    pool = await library.Oban.create_pool(url)
    await schema.install(pool)
    client = library.Oban(pool=pool, name="client")
    await client.enqueue_many([worker.new({}) for _ in range(watch.count)])

    async def work() -> None:
        async with library.Oban(pool=pool, queues={"default": MAX_CONCURRENT}):
            await watch.finished.wait()

    await watch.measure(work)
    await pool.close()


async def main(kind: str, url: str, count: int, postmaster: int) -> None:
    empty = {"ours": ours, "procrastinate": procrastinate, "pgqueuer": pgqueuer, "oban": oban}[kind]
    await asyncio.wait_for(empty(url, Stopwatch(count, postmaster)), 120)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=import_module("uvloop").new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
