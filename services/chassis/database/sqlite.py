"""
SQLite for one process: one thread owns the one writing connection and commits waiting transactions together.

Promises what one disk promises: WAL with synchronous=FULL, an answer only after the commit. One process per file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from services.chassis.database.transactions import Transaction, next_statement
from services.chassis.errors import Unavailable

T = TypeVar("T")
P = ParamSpec("P")

#: Transactions that may wait for the writer; more would be memory growth, so callers are refused.
WAITING = 10_000
#: Transactions committed with one fsync.
MAX_BATCH = 500
#: Seconds that the writer waits after a commit, so that the next one has company: for each transaction but the first of
#: the group that it has committed, and at most. A transaction that comes alone never waits.
PAUSE_EACH, MAX_PAUSE = 0.0005, 0.004
#: Seconds for which a commit proves that the file takes writes.
COMMITTED_LATELY = 1.0


class Waiting(NamedTuple):
    transaction: Callable[[], Transaction[Any]]
    answer: asyncio.Future[Any]
    context: Context  #: The caller's: what runs in the writer's thread is logged, and names its jobs, as the caller.


class Answer(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


@lru_cache(maxsize=1024)
def without_locks(sql: str) -> str:
    """Drop row locks: the one writer holds the lock on everything."""
    return re.sub(r"\s+FOR UPDATE(\s+SKIP LOCKED)?", "", sql)


def drive(connection: sqlite3.Connection, transaction: Transaction[T]) -> T:
    try:
        statement = next_statement(transaction, None)
        while True:
            found = connection.execute(without_locks(statement.sql), statement.parameters).fetchall()
            statement = next_statement(transaction, found)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
    finally:
        transaction.close()


def storable(error: Exception) -> Exception:
    """Say in our words that the file cannot take a write: full, locked, unreadable."""
    if isinstance(error, sqlite3.OperationalError) and "syntax" not in str(error) and "no such" not in str(error):
        full = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
        reason = "STORE_FULL" if full else "STORE_UNAVAILABLE"
        return Unavailable(f"the database refused: {error}", reason=reason, retry_after=1.0)
    return error


class SQLite:
    """The embedded database of one process."""

    def __init__(self, path: str, lock: int, waiting: int = WAITING) -> None:
        self.offset_ms = 0
        self._path = path
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._queue: queue.Queue[Waiting | None] = queue.Queue(waiting)
        self._local = threading.local()
        self._reads: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="sqlite-read")
        self._probes = ThreadPoolExecutor(1, thread_name_prefix="sqlite-ready")
        self._probing: sqlite3.Connection | None = None
        self._committed_at = -COMMITTED_LATELY
        self._writing = self._connection()
        self._thread = threading.Thread(target=self._write, name="sqlite-write", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: str, waiting: int = WAITING) -> SQLite:
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = alone(path)
            keep_private(path)
            return cls(path, lock, waiting)
        except (OSError, sqlite3.Error) as error:
            raise SystemExit(f"cannot open the database {path}: {error}") from error

    async def run(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()
        try:
            self._queue.put_nowait(Waiting(partial(transaction, *args, **kwargs), answer, copy_context()))
        except queue.Full:
            raise Unavailable("too many writes are waiting", reason="STORE_UNAVAILABLE", retry_after=1.0) from None
        return await asyncio.shield(answer)

    add = run

    async def read(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._readers, self._read, partial(transaction, *args, **kwargs))

    async def ready(self) -> None:
        """Write on a connection of its own, unless the writer has just committed and so keeps the lock busy."""
        if time.monotonic() - self._committed_at < COMMITTED_LATELY:
            return
        await self._loop.run_in_executor(self._probes, self._probe)

    async def close(self) -> None:
        await asyncio.to_thread(self._queue.put, None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._probes.shutdown)
        for connection in [*self._reads, self._probing, self._writing]:
            if connection is not None:
                connection.close()
        os.close(self._lock)

    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=512)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=5000")
        connection.create_function("now_ms", 0, self._now_ms)
        return connection

    def _probe(self) -> None:
        if self._probing is None:
            self._probing = self._connection()
        started_at = time.monotonic()
        try:
            self._probing.execute("UPDATE schema_lock SET touched_at = now_ms()")
        except sqlite3.Error as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not (busy and self._committed_at > started_at):  # the writer is at work
                raise storable(error) from error

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms

    def _read(self, transaction: Callable[[], Transaction[T]]) -> T:
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connection()
            self._local.connection.execute("PRAGMA query_only=ON")
            self._reads.append(self._local.connection)
        connection: sqlite3.Connection = self._local.connection
        try:
            connection.execute("BEGIN")
            return drive(connection, transaction())
        except sqlite3.Error as error:
            raise storable(error) from error
        finally:
            if connection.in_transaction:  # a full or failing disk has ended it already
                connection.execute("ROLLBACK")

    def _write(self) -> None:
        for group in self._groups():
            answers = self._together(group)
            with suppress(RuntimeError):  # the loop is gone, and with it everyone who waited
                self._loop.call_soon_threadsafe(deliver, answers)
            time.sleep(min(MAX_PAUSE, (len(group) - 1) * PAUSE_EACH))

    def _groups(self) -> Iterator[list[Waiting]]:
        while (first := self._queue.get()) is not None:
            group: list[Waiting] = [first]
            while len(group) < MAX_BATCH:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    yield group
                    return
                group.append(following)
            yield group

    def _together(self, group: list[Waiting]) -> list[Answer]:
        """
        Commit a group with one fsync.

        A full disk rolls back the whole group, whatever the savepoints say: the one that met it is answered with the
        error and the others are run again; where it was the commit that met it, each runs alone.
        """
        db = self._writing
        spoilt: list[Answer] = []
        while group:
            answers: list[Answer] = []
            try:
                db.execute("BEGIN IMMEDIATE")
                for waiting in group:
                    answers.append(self._in_savepoint(waiting))
                    if not db.in_transaction:
                        break
                else:
                    db.execute("COMMIT")
                    self._committed_at = time.monotonic()
                    return spoilt + answers
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if len(group) == 1:
                    return [*spoilt, Answer(group[0].answer, None, storable(error))]
                return spoilt + [answer for waiting in group for answer in self._together([waiting])]
            spoilt.append(answers[-1])
            group = [waiting for waiting in group if waiting.answer is not answers[-1].future]
        return spoilt

    def _in_savepoint(self, waiting: Waiting) -> Answer:
        db = self._writing
        db.execute("SAVEPOINT one")
        try:
            value = waiting.context.run(lambda: drive(db, waiting.transaction()))
        except Exception as error:  # noqa: BLE001 - whatever a transaction raises is its caller's answer
            if db.in_transaction:
                db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
            return Answer(waiting.answer, None, storable(error))
        db.execute("RELEASE one")
        return Answer(waiting.answer, value, None)


def alone(path: str) -> int:
    """Take the file for this process; the lock goes when the process does, however it goes."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SystemExit(f"another process has {path} open; for several replicas use postgresql://") from None
    return lock


def keep_private(path: str) -> None:
    """Make the file, and the files that SQLite puts beside it, readable by their owner only."""
    Path(path).touch(mode=0o600)  # SQLite gives its other files the mode of this one
    for name in (path, f"{path}-wal", f"{path}-shm", f"{path}.lock"):
        with suppress(FileNotFoundError):
            Path(name).chmod(0o600)


def deliver(answers: list[Answer]) -> None:
    for future, value, error in answers:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
            future.exception()  # a caller who has gone will not ask; that is no warning's matter
