"""The query plans of both databases: a claim reads only the jobs that it claims, a poll reads no finished job."""

import re

import pytest

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, Row, Statement, rows
from services.chassis.queue import jobs, operations
from services.chassis.queue.jobs import Queue
from tests.integration.test_queue import nothing, remember
from tests.postgres_cluster import Cluster

AHEAD = 200_000

SQLITE_FILL = """
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :ahead)
    INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, expires_at)
    SELECT 'post', 'ahead' || i, 2, 'queued', now_ms() + 86400000 + i, CAST('x' AS BLOB), now_ms(), now_ms() FROM n
"""
POSTGRES_FILL = """
    INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, expires_at)
    SELECT 'post', 'ahead' || i, 2, 'queued', now_ms() + 86400000 + i, '\\x78', now_ms(), now_ms()
    FROM generate_series(1, CAST(:ahead AS BIGINT)) AS i
"""

POSTGRES_FILL_DUE = """
    INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, expires_at)
    SELECT 'post', 'due' || i, i % 3, 'queued', now_ms() - i % 60000 + CAST(:ahead_ms AS BIGINT),
        '\\x78', now_ms(), now_ms() + 86400000
    FROM generate_series(1, 100000) AS i
"""
FINISH_ALL = "UPDATE job SET state = 'done', finished_at = now_ms()"


async def plan_of(database: Database, sqlite: bool, statement: Statement) -> str:
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "

    async def explained() -> list[str]:
        sql, values = statement.sql, dict(statement.parameters)
        if not sqlite:  # EXPLAIN of parameters would show a generic plan
            sql = re.sub(r"(?<!:):([a-z_]+)", lambda name: repr(values[name[1]]), sql)
        found: list[Row] = list(await rows(explain + sql, **values))
        return [str(row["detail"] if sqlite else row["QUERY PLAN"]) for row in found]

    return "\n".join(await database.run(explained))


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_claim_behind_200_000_scheduled_jobs_does_not_read_them(
    database: Database, database_url: str, state: str
) -> None:
    sqlite = database_url.startswith("sqlite")
    await database.run(rows, SQLITE_FILL if sqlite else POSTGRES_FILL, ahead=AHEAD)
    if not sqlite:
        await database.run(rows, "ANALYZE job")
    await database.run(jobs.add, "post", "now", b"")
    parameters = {
        "queue": "post",
        "priority": 2,
        "state": state,
        "slots": 20,
        "lease": 20_000,
        "provider": "",
        "free": 1,
    }

    for statement in (Statement(jobs.CLAIM, parameters), Statement(jobs.PEEK, parameters)):
        plan = await plan_of(database, sqlite, statement)
        expected = (
            r"job_due \(queue=\? AND priority=\? AND state=\? AND due_at<\?\)"
            if sqlite
            else r"using job_due[^>]*due_at <="
        )
        assert re.search(expected, plan), plan
        assert not re.search(r"Seq Scan on job|SCAN job(?! USING)", plan), plan

    queue = Queue("post", nothing, remember)
    assert [job.id for job in (await database.run(jobs.claim, queue, 20)).jobs] == ["now"]


@pytest.mark.parametrize("free", [1, 0])
@pytest.mark.parametrize("ahead_ms", [0, 20_000, 40_000])
async def test_poll_after_100_000_due_jobs_are_done_but_not_analyzed_scans_no_table(
    postgres: Cluster, ahead_ms: int, free: int
) -> None:
    async with connect(postgres.database()) as database:
        await database.run(rows, "ALTER TABLE job SET (autovacuum_enabled = false)")  # statistics stay old
        await database.run(rows, POSTGRES_FILL_DUE, ahead_ms=ahead_ms)
        await database.run(rows, "ANALYZE job")
        await database.run(rows, FINISH_ALL)
        parameters = {"queue": "post", "provider": "post", "free": free}

        for sql in (jobs.PEEK, operations.OLDEST_DUE):
            plan = await plan_of(database, sqlite=False, statement=Statement(sql, parameters))
            assert "job_due" in plan, plan
            assert "Seq Scan on job" not in plan, plan

        assert (await database.read(jobs.peek, "post", free=bool(free))).due == ()
        assert (await database.read(operations.census, "post"))["oldest_due_ms"] == 0
