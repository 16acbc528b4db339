"""
Bring a schema up to date: numbered SQL files in one transaction.

The files of the chassis and of the service's folders form one list. It is sorted by name, and each file is applied
once. A release only adds to the schema, and a later one removes old parts, so an older process runs on a newer schema.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from services.chassis.database.transactions import Database, one, rows

CHASSIS_SCHEMA = Path(__file__).with_name("schema")

BOOTSTRAP = (
    "CREATE TABLE IF NOT EXISTS schema_lock (id BIGINT PRIMARY KEY, touched_at BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied_at BIGINT NOT NULL)",
    "INSERT INTO schema_lock (id, touched_at) VALUES (1, 0) ON CONFLICT (id) DO NOTHING",
)


async def migrate(database: Database, *folders: Path) -> None:
    """Apply the missing files. A lock row makes replicas that start together wait for one another."""
    scripts = stream(*folders)
    for attempt in range(10):
        try:
            await database.run(bootstrap)
            break
        except asyncpg.PostgresError:  # another replica has created the same table
            if attempt == 9:
                raise
            await asyncio.sleep(0.1)
    await database.run(apply, scripts)


def stream(*folders: Path) -> list[tuple[str, list[str]]]:
    files = [file for folder in (CHASSIS_SCHEMA, *folders) for file in folder.glob("*.sql")]
    return sorted((file.stem, statements(file.read_text(encoding="utf-8"))) for file in files)


async def bootstrap() -> None:
    for statement in BOOTSTRAP:
        await rows(statement)


async def apply(scripts: Sequence[tuple[str, Sequence[str]]]) -> None:
    await one("SELECT id FROM schema_lock WHERE id = 1 FOR UPDATE")
    applied = {row["name"] for row in await rows("SELECT name FROM migration")}
    for name, script in scripts:
        if name not in applied:
            for statement in script:
                await rows(statement)
            await rows("INSERT INTO migration (name, applied_at) VALUES (:name, now_ms())", name=name)


def statements(script: str) -> list[str]:
    """Split a script at the semicolons that end a line; drop comments that have a line of their own."""
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in code.split(";\n") if statement.strip(" \n;")]
