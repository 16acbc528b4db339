"""The query plans of both databases: a claim reads only the jobs that it claims."""

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
