"""
Jobs that fall due evenly over some seconds: python -m bench.peers.schedule DATABASE_URL COUNT SECONDS

Prints how late they began, against the clock of the machine, which is the database's too.
"""

import asyncio
import json
import sys
import time

import uvloop

from services.chassis import logs
from services.chassis.database.connect import connect
from services.chassis.database.transactions import rows
from services.chassis.queue import jobs
from services.chassis.queue.jobs import Complete, Job, MarkAttempted, Outcome, Queue
from services.chassis.queue.worker import Worker

MAX_BATCH = 500
AHEAD_MS = 3000  # until the first falls due, once all are stored
FAR_MS = 1 << 50
BEGIN = "UPDATE job SET due_at = due_at - :far + :first, expires_at = expires_at - :far + :first"


async def add(offsets: list[int]) -> None:
    for offset in offsets:
        await jobs.add("bench", str(offset), str(offset).encode(), due_at=FAR_MS + offset // 1000)


async def main(url: str, count: int, seconds: float) -> None:
    late: list[float] = []
    over = asyncio.Event()
    offsets = [int(number * seconds * 1e6 / count) for number in range(count)]  # in microseconds
    first = 0

    async def handle(job: Job, _begin_act: MarkAttempted) -> Outcome:
        late.append(time.time() * 1000 - first - int(job.payload) / 1000)
        if len(late) == count:
            over.set()
        return Complete()

    async def on_dead(job: Job, reason: str) -> None:
        raise AssertionError(f"{job.id} died: {reason}")

    logs.configure("bench", "WARNING")
    async with connect(url) as database:
        for start in range(0, count, MAX_BATCH):
            await database.run(add, offsets[start : start + MAX_BATCH])
        first = time.time_ns() // 1_000_000 + AHEAD_MS
        await database.run(rows, BEGIN, far=FAR_MS, first=first)
        worker = Worker(database, Queue("bench", handle, on_dead))
        working = asyncio.create_task(worker.run())
        async with asyncio.timeout(AHEAD_MS / 1000 + 4 * seconds):
            await over.wait()
        worker.stop()
        await working
    late.sort()
    print(
        json.dumps({"late_p50_ms": late[count // 2], "late_p99_ms": late[count * 99 // 100], "late_most_ms": late[-1]})
    )


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
