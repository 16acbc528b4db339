"""The databases under the system, seen from outside: what is left in the queues, and whose process can be killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from chaos.processes import descendants
from tests.postgres_cluster import BINARIES, Cluster

PROCESSES = ("payments", "email", "sms", "gateway")

Rows = Sequence[dict[str, Any]]


class Stores(Protocol):
    def url(self, process: str) -> str: ...

    def pids(self) -> list[int]:
        """Those of the database's own, first the one whose death is all their death."""

    async def query(self, process: str, sql: str) -> Rows:
        """Run one statement, seeing or changing what is committed; OSError while that cannot be done."""

    async def revive(self) -> None:
        """Start the database again, if it is one that can be down."""


class SQLiteFiles:
    """A file a process. Another reader and writer does no harm: SQLite locks by itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Stores]:
        yield cls(folder)

    def url(self, process: str) -> str:
        return f"sqlite:///{self._folder}/{process}.db"

    def pids(self) -> list[int]:
        return []

    async def revive(self) -> None:
        pass

    async def query(self, process: str, sql: str) -> Rows:
        def ask() -> Rows:
            with closing(self._connection(process)) as db:
                return [dict(row) for row in db.execute(sql)]

        try:
            return await asyncio.to_thread(ask)
        except sqlite3.Error as error:
            raise OSError(str(error)) from error

    def _connection(self, process: str) -> sqlite3.Connection:
        uri = f"file:{self._folder}/{process}.db?mode=rw"  # mode: a file that is not there yet is not ours to make
        db = sqlite3.connect(uri, isolation_level=None, timeout=5, uri=True)
        db.row_factory = sqlite3.Row
        db.create_function("now_ms", 0, lambda: time.time_ns() // 1_000_000)
        return db


class Killable(Cluster):
    """The cluster, started again as often as it takes."""

    @property
    def alive(self) -> bool:
        return self._server.poll() is None

    @property
    def pid(self) -> int:
        return self._server.pid

    def start(self, patience: float = 60.0) -> None:
        """A postmaster that follows another too soon finds the old one's children; on a full disk, none starts."""
        until = time.monotonic() + patience
        while True:
            try:
                super().start()
            except AssertionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return


class PostgresFiles:
    def __init__(self, cluster: Killable) -> None:
        self._cluster = cluster
        self._urls = {process: cluster.database() for process in PROCESSES}
        self._reviving = threading.Lock()

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Stores]:
        home = folder / "postgres"
        home.mkdir()
        refuse_closed_folder(home)
        cluster = await asyncio.to_thread(Killable, home, fsync=True)
        stores = cls(cluster)
        keeping = asyncio.create_task(stores.keep())
        try:
            yield stores
        finally:
            keeping.cancel()
            with stores._reviving, suppress(subprocess.TimeoutExpired, ProcessLookupError):
                await asyncio.to_thread(cluster.stop)
            shutil.rmtree(home, ignore_errors=True)

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            await self.revive()

    async def revive(self) -> None:
        await asyncio.to_thread(self._revive)

    def _revive(self) -> None:
        with self._reviving:
            if not self._cluster.alive:
                self._cluster.start()

    def url(self, process: str) -> str:
        return self._urls[process]

    def pids(self) -> list[int]:
        return [self._cluster.pid, *descendants(self._cluster.pid)] if self._cluster.alive else []

    async def query(self, process: str, sql: str) -> Rows:
        try:
            connection = await asyncpg.connect(self._urls[process], timeout=5, command_timeout=10)
            try:
                return [dict(row) for row in await connection.fetch(sql)]
            finally:
                await connection.close(timeout=5)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def refuse_closed_folder(folder: Path) -> None:
    """PostgreSQL does not run as root: its user has to reach the folder through all those above it."""
    if BINARIES is None:
        raise SystemExit("PostgreSQL must be installed (initdb), or DATABASE must be sqlite")
    if os.geteuid() != 0:
        return
    try:
        entered = subprocess.run(["/usr/bin/test", "-x", folder.parent], user="postgres", cwd="/", check=False)
    except (KeyError, ValueError):
        raise SystemExit("there must be a user postgres: PostgreSQL does not run as root") from None
    if entered.returncode != 0:
        raise SystemExit(
            f"the user postgres must be able to enter {folder.parent}: name another folder, as in FOLDER=/tmp/chaos"
            " (--folder), or allow it with chmod o+x on the folders above"
        )


def signal_all(pids: Sequence[int], number: int) -> int:
    """Send to each; answers how many were there to get it."""
    sent = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            sent += 1
    return sent
