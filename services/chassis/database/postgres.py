"""
PostgreSQL when one machine is outgrown: several replicas of a process, a replicated database under them.

Transactions that only add are committed together, without savepoints, which cost more than they save: where one of a
group fails, each is run again by itself. All others have a connection each: two groups that each hold what the other
wants (a pace's row, the change log's counter) would wait for PostgreSQL to see the deadlock, a second each time.
No advisory locks, no LISTEN/NOTIFY (a global lock at commit), no sequences: what distributed databases of this protocol
speak, too.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg
import structlog
from asyncpg.connect_utils import SessionAttribute

from services.chassis.database.transactions import Transaction, next_statement
from services.chassis.errors import Unavailable

T = TypeVar("T")
P = ParamSpec("P")

log = structlog.get_logger()

#: Seconds for one statement, and for a free connection. Below the default deadline of an RPC.
STATEMENT_TIMEOUT = 8.0
ACQUIRE_TIMEOUT = 5.0
#: Milliseconds after which the server ends a transaction that asks for nothing: its process is frozen or its machine is
#: gone, and what it has locked is wanted by others.
FROZEN_MS = "5000"
#: Groups that are committed at the same time, and transactions in one.
GROUPS, MAX_BATCH = 2, 64
#: Seconds a starting process waits for its database.
START_TIMEOUT = 60.0

# STABLE over statement_timestamp(): with clock_timestamp() an index on due_at is not used.
NOW_MS = """
    CREATE OR REPLACE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql STABLE AS $$
        SELECT CAST(extract(epoch FROM statement_timestamp()) * 1000 AS BIGINT)
            + CAST(coalesce(nullif(current_setting('topsmile.clock_offset_ms', true), ''), '0') AS BIGINT)
    $$
"""

REPLAY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)
# A database that is gone, going, coming, or no longer the primary.
GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    OSError,
    TimeoutError,
)


@lru_cache(maxsize=1024)
def numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """Compile `:name` to `$n`; `::` casts are left alone."""
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"(?<![:\w]):([a-z_]\w*)", place, sql), tuple(names)


async def keep_session(_connection: object) -> None:
    """Do nothing between two users of a connection: no transaction changes the session, so nothing needs resetting."""


def each_host(url: str) -> list[str]:
    """Take apart `postgresql://user@a:1,b:2/name`."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


async def connect_to_primary(url: str, **options: Any) -> Any:
    """
    Ask all hosts at once, and take the one that takes writes.

    asyncpg asks them one after another under one timeout: behind a frozen one, which accepts a connection and says no
    more, the others would never be asked.
    """
    attempts = [asyncio.ensure_future(asyncpg.connect(host, **options)) for host in each_host(url)]
    chosen = None
    last: BaseException = TimeoutError()

    def hang_up(attempt: asyncio.Future[Any]) -> None:
        if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not chosen:
            attempt.result().terminate()

    try:
        for attempt in asyncio.as_completed(attempts):
            try:
                chosen = await attempt
            except GONE as error:
                last = error
            else:
                return chosen
        raise last
    finally:  # without waiting: whoever is cancelled here would lose the one that was chosen
        for each in attempts:
            each.cancel()
            each.add_done_callback(hang_up)


class Waiting(NamedTuple):
    transaction: Callable[[], Transaction[Any]]
    answer: asyncio.Future[Any]


class Postgres:
    """A pool of connections to whichever host takes writes."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], probe: asyncpg.Pool[asyncpg.Record]) -> None:
        self.offset_ms = 0
        self._pool = pool
        self._probe = probe
        self._waiting: deque[Waiting] = deque()
        self._committing: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, connections: int = 10, timeout: float = STATEMENT_TIMEOUT) -> Postgres:
        started = asyncio.get_running_loop().time()
        pool_of = partial(
            asyncpg.create_pool,
            url,
            command_timeout=timeout,
            timeout=ACQUIRE_TIMEOUT,
            reset=keep_session,
            connect=cast("Any", connect_to_primary),
            target_session_attrs=SessionAttribute.primary if "," in url else SessionAttribute.any,
            server_settings={"application_name": "topsmile", "idle_in_transaction_session_timeout": FROZEN_MS},
        )
        while True:
            pool = pool_of(min_size=1, max_size=connections)
            try:
                await pool  # type: ignore[unused-awaitable]  # awaiting it is how it is opened
                async with pool.acquire() as connection:
                    await define_clock(connection)
            except GONE as error:
                pool.terminate()
                if asyncio.get_running_loop().time() - started > START_TIMEOUT:
                    raise SystemExit(f"the database does not answer: {type(error).__name__}") from error
                log.warning("database.connect_failed", error=type(error).__name__)
                await asyncio.sleep(1.0)
            except BaseException:
                pool.terminate()
                raise
            else:
                return cls(pool, await pool_of(min_size=0, max_size=1))

    async def run(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.ensure_future(self._run(partial(transaction, *args, **kwargs)))
        running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # its caller may have gone
        return await asyncio.shield(running)

    async def add(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # its caller may have gone
        self._waiting.append(Waiting(partial(transaction, *args, **kwargs), answer))
        if len(self._committing) < GROUPS:
            committing = asyncio.create_task(self._commit_what_waits())
            self._committing.add(committing)
            committing.add_done_callback(self._committing.discard)
        return await asyncio.shield(answer)

    async def read(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.offset_ms:  # a transaction is needed to hold the moved clock
            return await self.run(transaction, *args, **kwargs)
        async with self._connection() as connection:
            return await drive(connection, transaction(*args, **kwargs))

    async def ready(self) -> None:
        """Write on a connection of its own, which never waits for one of the pool."""
        async with self._connection(self._probe) as connection:
            await connection.execute("UPDATE schema_lock SET touched_at = now_ms()")

    async def close(self) -> None:
        for pool in (self._probe, self._pool):
            try:
                await asyncio.wait_for(pool.close(), 5.0)
            except GONE:
                pool.terminate()

    async def _commit_what_waits(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            values = await self._together([waiting.transaction for waiting in group])
            for waiting, value in zip(group, values, strict=True):
                if isinstance(value, BaseException):
                    waiting.answer.set_exception(value)
                else:
                    waiting.answer.set_result(value)

    async def _together(self, transactions: Sequence[Callable[[], Transaction[Any]]]) -> Sequence[Any]:
        """Commit them as one; where that fails, each by itself, which shows whose error it is."""
        try:
            return await self._commit(transactions)
        except Unavailable as outage:
            return [outage] * len(transactions)
        except Exception:  # noqa: BLE001 - of whatever kind it is, it comes again
            return await asyncio.gather(*map(self._run, transactions), return_exceptions=True)

    async def _run(self, transaction: Callable[[], Transaction[T]]) -> T:
        looked_again = False
        while True:
            try:
                (value,) = await self._commit([transaction])
            except REPLAY:
                continue
            except asyncpg.UniqueViolationError:
                # Another transaction stored it since this one looked. A second look sees that; if not, it is a bug.
                if looked_again:
                    raise
                looked_again = True
            else:
                return value

    async def _commit(self, transactions: Sequence[Callable[[], Transaction[T]]]) -> list[T]:
        async with self._connection() as connection, connection.transaction():
            if self.offset_ms:
                moved = str(self.offset_ms)
                await connection.execute("SELECT set_config('topsmile.clock_offset_ms', $1, true)", moved)
            return [await drive(connection, transaction()) for transaction in transactions]

    @asynccontextmanager
    async def _connection(self, pool: asyncpg.Pool[asyncpg.Record] | None = None) -> AsyncIterator[Any]:
        """Lend a connection; one that met an outage is not lent again."""
        pool = pool or self._pool
        try:
            async with pool.acquire(timeout=ACQUIRE_TIMEOUT) as connection:
                try:
                    yield connection
                except GONE:
                    # At once: it takes back asyncpg's request to cancel what timed out. A COMMIT cancelled while it
                    # waits for its standby is seen by everybody, and lost with the primary.
                    connection.terminate()
                    raise
        except asyncpg.DataError:  # an InterfaceError by birth, but a bug of ours
            raise
        except GONE as error:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError | TimeoutError | ConnectionError):
                # Demoted, frozen or gone: every connection of the pool leads to that host.
                await pool.expire_connections()
            reason = "STORE_FULL" if isinstance(error, asyncpg.DiskFullError) else "STORE_UNAVAILABLE"
            raise Unavailable(f"the database: {type(error).__name__}", reason=reason, retry_after=1.0) from error


async def drive(connection: Any, transaction: Transaction[T]) -> T:
    try:
        asked = next_statement(transaction, None)
        while True:
            sql, names = numbered(asked.sql)
            found = await connection.fetch(sql, *(asked.parameters[name] for name in names))
            asked = next_statement(transaction, found)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
    finally:
        transaction.close()


async def define_clock(connection: Any) -> None:
    """Define `now_ms()`; two replicas that start together may both try, and the loser finds the work done."""
    if await connection.fetchval("SELECT to_regprocedure('now_ms()')") is None:
        try:
            await connection.execute(NOW_MS)
        except (asyncpg.InternalServerError, asyncpg.UniqueViolationError):
            if await connection.fetchval("SELECT to_regprocedure('now_ms()')") is None:
                raise
