"""A process whose worker writes to a file as its provider: python -m tests.fakes.working_process"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from services.chassis.database.connect import connect
from services.chassis.database.transactions import rows
from services.chassis.queue.jobs import Complete, Job, MarkAttempted, Outcome, Queue
from services.chassis.queue.worker import Worker


async def remember(job: Job, reason: str) -> None:
    await rows("INSERT INTO given_up (id, reason) VALUES (:id, :reason)", id=job.id, reason=reason)


def stop_here(job: Job, place: str) -> None:
    """Freeze at this step of a job where the test names it."""
    if os.environ.get("WORK_STOPS") == f"{place} {job.id}" and job.claims == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


async def main(url: str, ledger: Path, concurrency: int) -> None:
    done = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def handle(job: Job, mark_attempted: MarkAttempted) -> Outcome:
        if job.outcome_unknown and f"{job.id}\n" in ledger.read_text():  # noqa: ASYNC240 - this provider can be asked
            return Complete()
        stop_here(job, "before")
        await mark_attempted(1.0)
        os.write(done, f"{job.id}\n".encode())
        stop_here(job, "after")
        await asyncio.sleep(0.005)  # long enough to be killed between the act and its outcome
        return Complete()

    async with connect(url) as database:
        sys.stdout.write('{"event": "working.listening"}\n')
        sys.stdout.flush()
        await Worker(database, Queue("post", handle, remember, deadline=1.0, concurrency=concurrency)).run()


if __name__ == "__main__":
    work = Path(os.environ["WORK_LEDGER"]), int(os.environ.get("WORK_CONCURRENCY", "10"))
    asyncio.run(main(os.environ["WORK_DATABASE_URL"], *work))
