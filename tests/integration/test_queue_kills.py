"""Real workers are killed and frozen: no stored job is lost, and none runs twice if the provider can be asked."""

import asyncio
import random
from pathlib import Path

import pytest

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, one
from services.chassis.queue.jobs import add
from tests.postgres_cluster import Cluster
from tests.processes import process

JOBS = 300


async def count_unfinished(database: Database) -> int:
    row = await database.read(one, "SELECT COUNT(*) AS n FROM job WHERE state IN ('queued', 'running')")
    return int(row["n"])


async def fill(url: str) -> None:
    async with connect(url) as database:
        await database.run(one, "SELECT 1 AS n")
        for n in range(JOBS):
            await database.run(add, "post", f"job{n:03}", b"")


async def all_written(ledger: Path) -> None:
    async with asyncio.timeout(60):
        while len(set(ledger.read_text().split())) < JOBS:  # noqa: ASYNC110, ASYNC240 - another process writes it
            await asyncio.sleep(0.1)


async def test_workers_killed_at_random_run_each_job_once(database_url: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    await fill(database_url)
    settings = {"WORK_DATABASE_URL": database_url, "WORK_LEDGER": str(ledger)}
    dice = random.Random(7)
    for _ in range(6):
        with process("tests.fakes.working_process", settings):
            await asyncio.sleep(dice.uniform(0.0, 0.15))
    with process("tests.fakes.working_process", settings):
        await all_written(ledger)
        await asyncio.sleep(2.5)  # a lease, for jobs whose worker died between the request and the outcome

    done = ledger.read_text().split()
    assert sorted(done) == [f"job{n:03}" for n in range(JOBS)]
    async with connect(database_url) as database:
        assert await count_unfinished(database) == 0


@pytest.mark.parametrize("place", ["before", "after"])
async def test_worker_frozen_past_its_lease_is_overtaken_and_repeats_nothing(
    postgres: Cluster, tmp_path: Path, place: str
) -> None:
    database_url = postgres.database()  # only one process opens an SQLite file, so no other could overtake it
    ledger = tmp_path / "ledger"
    ledger.touch()
    await fill(database_url)
    settings = {"WORK_DATABASE_URL": database_url, "WORK_LEDGER": str(ledger)}
    # One job at a time: another one could be between mark_attempted and its request, where a freeze repeats it.
    stopping = {**settings, "WORK_CONCURRENCY": "1", "WORK_STOPS": f"{place} job020"}
    with process("tests.fakes.working_process", stopping) as frozen:
        async with asyncio.timeout(20):
            while not frozen.stopped():  # noqa: ASYNC110 - another process stops itself
                await asyncio.sleep(0.02)
        with process("tests.fakes.working_process", settings):
            await all_written(ledger)
            frozen.thaw()
            await asyncio.sleep(1.0)

    assert sorted(ledger.read_text().split()) == [f"job{n:03}" for n in range(JOBS)]
