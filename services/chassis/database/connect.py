"""Open a database by its URL and bring its schema up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.chassis.database.migrations import migrate
from services.chassis.database.postgres import Postgres
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import Database, rows

# Only one process opens an SQLite file, so no lease is valid when it is opened.
EXPIRE_LEASES = """
    UPDATE job SET due_at = now_ms() WHERE state IN ('queued', 'running') AND state = 'running' AND due_at > now_ms()
"""


@asynccontextmanager
async def connect(url: str, *migrations: Path) -> AsyncIterator[Database]:
    """
    Open `sqlite:///file`, `sqlite:////absolute/file` or `postgresql://…` and bring its schema up to date.

    A PostgreSQL URL may name several hosts (`postgresql://a,b,c/name`); the one that accepts writes is used. Raises
    SystemExit with the reason if the database cannot be opened.
    """
    database: Database
    if url.startswith("sqlite:///"):
        database = await SQLite.open(url.removeprefix("sqlite:///"))
    elif url.startswith(("postgresql://", "postgres://")):
        database = await Postgres.open(url)
    else:
        raise ValueError("a database URL must begin with sqlite:/// or postgresql://")
    try:
        await migrate(database, *migrations)
        if url.startswith("sqlite:"):
            await database.run(rows, EXPIRE_LEASES)
        yield database
    finally:
        await database.close()
