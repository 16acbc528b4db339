"""The promises of a transaction, on both databases."""

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import asyncpg
import pytest

from services.chassis.database.connect import connect
from services.chassis.database.postgres import Postgres
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import Database, maybe_one, one, rows
from services.chassis.errors import Rejected, Unavailable
from tests.postgres_cluster import BINARIES, cluster

TABLE = "CREATE TABLE note (id TEXT PRIMARY KEY, amount BIGINT NOT NULL, body BYTEA)"
INSERT = "INSERT INTO note (id, amount, body) VALUES (:id, :amount, :body)"


async def add(id: str, amount: int = 0) -> str:
    await rows(INSERT, id=id, amount=amount, body=b"\x00\xff")
    return id


async def count() -> int:
    return int((await one("SELECT COUNT(*) AS n FROM note"))["n"])


@pytest.fixture
async def notes(database: Database) -> Database:
    await database.run(rows, TABLE)
    return database


async def test_transaction_returns_the_result_of_its_coroutine(notes: Database) -> None:
    await notes.run(add, "a", amount=2**40)
    row = await notes.read(maybe_one, "SELECT id, amount, body FROM note WHERE id = :id", id="a")

    assert row is not None
    assert dict(row) == {"id": "a", "amount": 2**40, "body": b"\x00\xff"}


async def test_transaction_that_raises_is_rolled_back_and_raises_to_its_caller(notes: Database) -> None:
    async def refuse() -> None:
        await add("a")
        raise Rejected("no")

    with pytest.raises(Rejected, match="no"):
        await notes.run(refuse)

    assert await notes.read(count) == 0


async def test_transaction_after_a_database_error_is_not_resumed(notes: Database) -> None:
    resumed = False

    async def twice() -> None:
        nonlocal resumed
        await add("a")
        try:
            await add("a")
        except Exception:  # noqa: BLE001 - no exception may arrive here
            resumed = True

    with pytest.raises((sqlite3.IntegrityError, asyncpg.UniqueViolationError)):
        await notes.run(twice)

    assert not resumed
    assert await notes.read(count) == 0


async def test_transaction_that_awaits_another_coroutine_raises_and_is_rolled_back(notes: Database) -> None:
    async def sleepy() -> None:
        await add("a")
        await asyncio.sleep(0)

    with pytest.raises(TypeError, match="statements only"):
        await notes.run(sleepy)

    assert await notes.read(count) == 0


async def test_failing_transaction_of_a_group_fails_alone(notes: Database) -> None:
    answers = await asyncio.gather(*(notes.run(add, str(n // 2)) for n in range(100)), return_exceptions=True)

    assert await notes.read(count) == 50
    assert len([answer for answer in answers if isinstance(answer, str)]) == 50


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
async def test_concurrent_inserts_of_one_key_see_each_other_when_run_again(notes: Database, names: str) -> None:
    async def unless_there(id: str) -> bool:
        missing = await maybe_one("SELECT id FROM note WHERE id = :id", id=id) is None
        if missing:
            await add(id)
        return missing

    stored = await asyncio.gather(*(notes.run(unless_there, id) for id in names * 20))

    assert sum(stored) == await notes.read(count) == len(names)


async def test_added_transactions_of_a_group_get_their_own_results(notes: Database) -> None:
    async def refuse(id: str) -> None:
        await add(id)
        raise Rejected(id)

    await notes.add(add, "there")
    added = [notes.add(add, id) for id in ("a", "there", "b")]
    refused = [notes.add(refuse, id) for id in "xy"]
    a, there, b, x, y = await asyncio.gather(*added, *refused, return_exceptions=True)

    assert (a, b, str(x), str(y)) == ("a", "b", "x", "y")
    assert isinstance(there, sqlite3.IntegrityError | asyncpg.UniqueViolationError)
    assert await notes.read(count) == 3


async def test_added_transactions_share_commits(request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres").database()
    async with connect(url) as notes:
        await notes.run(rows, TABLE)
        await asyncio.gather(*(notes.add(add, str(number)) for number in range(200)))

        commits = await notes.read(one, "SELECT COUNT(DISTINCT CAST(xmin AS TEXT)) AS n FROM note")
        assert int(commits["n"]) <= 200 / 10


async def test_transaction_of_a_cancelled_caller_is_committed(notes: Database) -> None:
    caller = asyncio.create_task(notes.run(add, "a"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)

    await notes.ready()
    for _ in range(100):
        if await notes.read(count):
            break
        await asyncio.sleep(0.01)
    assert await notes.read(count) == 1


async def test_concurrent_withdrawals_under_a_row_lock_never_overdraw(notes: Database) -> None:
    async def spend() -> None:
        row = await one("SELECT amount FROM note WHERE id = 'purse' FOR UPDATE")
        if row["amount"] < 100:
            raise Rejected("empty")
        await rows("UPDATE note SET amount = amount - 100 WHERE id = 'purse'")

    await notes.run(add, "purse", 1000)
    await asyncio.gather(*(notes.run(spend) for _ in range(25)), return_exceptions=True)

    row = await notes.read(one, "SELECT amount FROM note WHERE id = 'purse'")
    assert row["amount"] == 0


async def test_clock_offset_moves_the_database_clock(notes: Database) -> None:
    before = (await notes.run(one, "SELECT now_ms() AS now"))["now"]
    notes.offset_ms = 3_600_000

    assert 3_600_000 <= (await notes.run(one, "SELECT now_ms() AS now"))["now"] - before < 3_660_000
    assert 3_600_000 <= (await notes.read(one, "SELECT now_ms() AS now"))["now"] - before < 3_660_000


async def test_second_start_applies_no_migration_again_and_accepts_a_newer_schema(
    database_url: str, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "0002_note.sql").write_text(
        f"-- a table; of notes\n{TABLE};\n\nCREATE INDEX by_amount ON note (amount);\n"
    )
    async with connect(database_url, newer) as database:
        await database.run(add, "a")
    async with connect(database_url) as database:
        assert await database.read(count) == 1
    async with connect(database_url, newer) as database:
        assert await database.read(count) == 1


async def test_replicas_that_start_together_migrate_once(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue("postgres").database()
    (tmp_path / "0002_note.sql").write_text(f"{TABLE};\n")

    async def start() -> int:
        async with connect(url, tmp_path) as database:
            return await database.read(count)

    assert await asyncio.gather(*(start() for _ in range(4))) == [0, 0, 0, 0]


async def test_second_process_on_one_sqlite_file_refuses_to_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    async with connect(url):
        with pytest.raises(SystemExit, match="use postgresql://"):
            async with connect(url):
                pass
    async with connect(url):
        pass


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_sqlite_files_of_any_umask_are_private(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "made"
    before = os.umask(umask)
    try:
        for attempt in range(2):
            async with connect(f"sqlite:///{folder}/one.db") as database:
                await database.run(rows, "CREATE TABLE IF NOT EXISTS a (id TEXT PRIMARY KEY)")
                await database.read(rows, "SELECT id FROM a")
                modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
                assert set(modes) == {"one.db", "one.db-wal", "one.db-shm", "one.db.lock"}
                assert set(modes.values()) == {0o600}, attempt
                assert folder.stat().st_mode & 0o777 == 0o700
                # A killed process of an older version leaves these modes.
                for file in folder.iterdir():
                    file.chmod(0o644)
    finally:
        os.umask(before)


async def test_sqlite_in_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # noqa: ASYNC240 - no other task runs
    async with connect(f"sqlite:///{tmp_path}/one.db"):
        assert tmp_path.stat().st_mode & 0o777 == 0o755  # noqa: ASYNC240 - no other task runs


async def test_full_queue_of_writes_refuses_callers(tmp_path: Path) -> None:
    database = await SQLite.open(f"{tmp_path}/small.db", waiting=5)
    await database.run(rows, TABLE)

    answers = await asyncio.gather(*(database.run(add, str(n)) for n in range(200)), return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert {"STORE_UNAVAILABLE"} == {error.reason for error in refused}
    assert await database.read(count) == 200 - len(refused)
    await database.close()


async def test_full_disk_refuses_one_transaction_and_commits_the_others(tmp_path: Path) -> None:
    async def big(id: str) -> None:
        await rows(INSERT, id=id, amount=0, body=b"x" * 400_000)

    database = await SQLite.open(f"{tmp_path}/full.db")
    await database.run(rows, TABLE)
    await database.run(rows, "PRAGMA max_page_count = 60")

    answers = await asyncio.gather(
        *(database.run(add, str(n)) for n in range(5)),
        database.run(big, "big"),
        *(database.run(add, str(n)) for n in range(5, 10)),
        return_exceptions=True,
    )

    [refused] = [answer for answer in answers if isinstance(answer, BaseException)]
    assert isinstance(refused, Unavailable)
    assert refused.reason == "STORE_FULL"
    assert await database.read(count) == 10
    await database.close()


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [
        ("53100", "STORE_FULL"),
        ("53000", "STORE_UNAVAILABLE"),
        ("53300", "STORE_UNAVAILABLE"),
        ("57P03", "STORE_UNAVAILABLE"),
    ],
)
async def test_postgresql_outage_reports_a_full_disk_by_its_reason(
    request: pytest.FixtureRequest, sqlstate: str, reason: str
) -> None:
    async with connect(request.getfixturevalue("postgres").database()) as database:
        with pytest.raises(Unavailable) as refused:
            await database.run(rows, f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$")

    assert refused.value.reason == reason


@pytest.mark.parametrize("seconds", [2.0, 3.0, 4.0])
async def test_readiness_with_an_exhausted_pool_is_checked(request: pytest.FixtureRequest, seconds: float) -> None:
    async with connect(request.getfixturevalue("postgres").database()) as database:
        taken = [
            asyncio.create_task(database.run(rows, "SELECT CAST(pg_sleep(:seconds) AS TEXT)", seconds=seconds))
            for _ in range(12)
        ]
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await database.ready()

        assert time.monotonic() - started < 1.0
        assert not any(task.done() for task in taken)
        await asyncio.gather(*taken)


@pytest.mark.parametrize("writes", [500, 2_000, 5_000])
async def test_readiness_does_not_wait_for_writes(notes: Database, writes: int) -> None:
    waiting = [asyncio.create_task(notes.add(add, str(number))) for number in range(writes)]
    await asyncio.sleep(0)
    await notes.ready()

    assert not all(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_locked_sqlite_file_is_not_ready(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path}/locked.db") as database:
        await asyncio.sleep(1.1)  # a recent commit would count as a proof
        other = sqlite3.connect(f"{tmp_path}/locked.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refused:
            await database.ready()
        other.execute("ROLLBACK")
        other.close()
        await database.ready()

    assert refused.value.reason == "STORE_UNAVAILABLE"


async def test_locks_of_a_frozen_process_are_released(request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres").database()
    async with connect(url) as database:
        await database.run(rows, TABLE)
        await database.run(add, "purse", 1000)
        frozen = await asyncpg.connect(url, server_settings={"idle_in_transaction_session_timeout": "200"})
        held = frozen.transaction()
        await held.start()
        await frozen.execute("UPDATE note SET amount = 0 WHERE id = 'purse'")

        await database.run(rows, "UPDATE note SET amount = 1 WHERE id = 'purse'")

        assert (await database.read(one, "SELECT amount FROM note"))["amount"] == 1
        settings = await database.run(one, "SHOW idle_in_transaction_session_timeout")
        assert settings["idle_in_transaction_session_timeout"] == "5s"
        frozen.terminate()


@pytest.mark.skipif(BINARIES is None, reason="no PostgreSQL here")
async def test_commit_without_its_standby_is_not_visible() -> None:
    with cluster() as server:
        url = server.database()
        database = await Postgres.open(url, timeout=0.5)
        await database.run(rows, TABLE)
        server.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        server.psql("SELECT pg_reload_conf()")
        await asyncio.sleep(0.2)

        with pytest.raises(Unavailable):
            await database.run(add, "purse", 1000)

        await asyncio.sleep(0.3)  # asyncpg would cancel on a connection of its own
        assert await database.read(rows, "SELECT amount FROM note") == []
        server.psql("ALTER SYSTEM RESET synchronous_standby_names")
        server.psql("SELECT pg_reload_conf()")
        async with asyncio.timeout(5):
            while not await database.read(rows, "SELECT amount FROM note"):  # noqa: ASYNC110 - another process commits
                await asyncio.sleep(0.02)
        await database.close()
