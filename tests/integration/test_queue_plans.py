"""A claim reads what it claims and nothing else, however much is scheduled ahead: both databases' plans say so."""

import re

import pytest

from services.chassis.database.transactions import Database, Row, Statement, rows
from services.chassis.queue import jobs
from services.chassis.queue.jobs import Queue
from tests.integration.test_queue import nothing, remember

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


async def plan_of(database: Database, sqlite: bool, statement: Statement) -> str:
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "

    async def explained() -> list[str]:
        sql, given = statement.sql, dict(statement.parameters)
        if not sqlite:  # a plan is made for values, not for parameters
            sql = re.sub(r"(?<!:):([a-z_]+)", lambda name: repr(given[name[1]]), sql)
        found: list[Row] = list(await rows(explain + sql, **given))
        return [str(row["detail"] if sqlite else row["QUERY PLAN"]) for row in found]

    return "\n".join(await database.run(explained))


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_200_000_jobs_ahead_are_not_read_by_a_claim(database: Database, database_url: str, state: str) -> None:
    sqlite = database_url.startswith("sqlite")
    await database.run(rows, SQLITE_FILL if sqlite else POSTGRES_FILL, ahead=AHEAD)
    if not sqlite:
        await database.run(rows, "ANALYZE job")
    await database.run(jobs.add, "post", "now", b"")
    asked = {"queue": "post", "priority": 2, "state": state, "slots": 20, "lease": 20_000, "provider": "", "free": 1}

    for statement in (Statement(jobs.CLAIM, asked), Statement(jobs.PEEK, asked)):
        plan = await plan_of(database, sqlite, statement)
        wanted = (
            r"job_due \(queue=\? AND priority=\? AND state=\? AND due_at<\?\)"
            if sqlite
            else r"using job_due[^>]*due_at <="
        )
        assert re.search(wanted, plan), plan
        assert not re.search(r"Seq Scan on job|SCAN job(?! USING)", plan), plan

    queue = Queue("post", nothing, remember)
    assert [job.id for job in (await database.run(jobs.claim, queue, 20)).jobs] == ["now"]
