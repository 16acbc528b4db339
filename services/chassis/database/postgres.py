"""
PostgreSQL for several replicas of a process, with a replicated database under them.

`add` commits transactions together without savepoints, which cost more than they save. If one of a group fails, each
runs again alone. `run` takes a connection for each transaction. In groups, two of them could deadlock on a rate limit
and the change log's counter, and PostgreSQL takes a second to find that.
The SQL uses no advisory locks, no LISTEN/NOTIFY (a global lock at commit) and no sequences, because distributed
databases of this protocol lack them.
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

#: Seconds for one statement, and for a free connection. They are below the default deadline of an RPC.
STATEMENT_TIMEOUT = 8.0
ACQUIRE_TIMEOUT = 5.0
#: Milliseconds after which the server ends an idle transaction. Its process is frozen or its machine is gone, and
#: others wait for its locks.
IDLE_IN_TRANSACTION_MS = "5000"
#: Groups that are committed at the same time, and transactions in one group.
MAX_GROUPS, MAX_BATCH = 2, 64
#: Seconds for which a starting process waits for its database.
START_TIMEOUT = 60.0

# STABLE over statement_timestamp(), because PostgreSQL would use no index on due_at with clock_timestamp().
NOW_MS = """
    CREATE OR REPLACE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql STABLE AS $$
        SELECT CAST(extract(epoch FROM statement_timestamp()) * 1000 AS BIGINT)
            + CAST(coalesce(nullif(current_setting('topsmile.clock_offset_ms', true), ''), '0') AS BIGINT)
    $$
"""

REPLAY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)
# The database is away, is starting or stopping, or is no longer the primary.
OUTAGES = (
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
def to_positional(sql: str) -> tuple[str, tuple[str, ...]]:
    """Replace `:name` by `$n` and return the names in that order; leave `::` casts alone."""
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"(?<![:\w]):([a-z_]\w*)", place, sql), tuple(names)


async def keep_session(_connection: object) -> None:
    """Do nothing when a connection returns to the pool, because no transaction changes its session."""


def urls_of_hosts(url: str) -> list[str]:
    """Split `postgresql://user@a:1,b:2/name` into one URL for each host."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


async def connect_to_primary(url: str, **options: Any) -> Any:
    """
    Connect to all hosts at once and return the connection to the one that accepts writes.

    asyncpg tries the hosts one after another under one timeout. A frozen host accepts a connection and then stays
    silent, so asyncpg would never try the hosts behind it.
    """
    attempts = [asyncio.ensure_future(asyncpg.connect(host, **options)) for host in urls_of_hosts(url)]
    chosen = None
    last_error: BaseException = TimeoutError()

    def terminate_unchosen(attempt: asyncio.Future[Any]) -> None:
        if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not chosen:
            attempt.result().terminate()

    try:
        for attempt in asyncio.as_completed(attempts):
            try:
                chosen = await attempt
            except OUTAGES as error:
                last_error = error
            else:
                return chosen
        raise last_error
    finally:  # do not wait here: a cancellation would lose the chosen connection
        for each in attempts:
            each.cancel()
            each.add_done_callback(terminate_unchosen)


def retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Prevent asyncio's warning about an exception that a cancelled caller does not retrieve."""
    if not future.cancelled():
        future.exception()


class Waiting(NamedTuple):
    transaction: Callable[[], Transaction[Any]]
    answer: asyncio.Future[Any]


class Postgres:
    """A pool of connections to the host that accepts writes."""

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
            server_settings={
                "application_name": "topsmile",
                "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_MS,
            },
        )
        while True:
            pool = pool_of(min_size=1, max_size=connections)
            try:
                await pool  # type: ignore[unused-awaitable]  # this opens the pool
                async with pool.acquire() as connection:
                    await define_clock(connection)
            except OUTAGES as error:
                pool.terminate()
                if asyncio.get_running_loop().time() - started > START_TIMEOUT:
                    raise SystemExit(
                        f"the database must answer within {START_TIMEOUT:.0f} s: {type(error).__name__}"
                    ) from error
                log.warning("database.connect_failed", error=type(error).__name__)
                await asyncio.sleep(1.0)
            except BaseException:
                pool.terminate()
                raise
            else:
                return cls(pool, await pool_of(min_size=0, max_size=1))

    async def run(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.ensure_future(self._run(partial(transaction, *args, **kwargs)))
        running.add_done_callback(retrieve_exception)
        return await asyncio.shield(running)

    async def add(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(retrieve_exception)
        self._waiting.append(Waiting(partial(transaction, *args, **kwargs), answer))
        if len(self._committing) < MAX_GROUPS:
            committing = asyncio.create_task(self._commit_waiting())
            self._committing.add(committing)
            committing.add_done_callback(self._committing.discard)
        return await asyncio.shield(answer)

    async def read(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.offset_ms:  # only a transaction can hold the moved clock
            return await self.run(transaction, *args, **kwargs)
        async with self._connection() as connection:
            return await run_transaction(connection, transaction(*args, **kwargs))

    async def ready(self) -> None:
        """Write on a connection of its own, which does not wait for the pool."""
        async with self._connection(self._probe) as connection:
            await connection.execute("UPDATE schema_lock SET touched_at = now_ms()")

    async def close(self) -> None:
        for pool in (self._probe, self._pool):
            try:
                await asyncio.wait_for(pool.close(), 5.0)
            except OUTAGES:
                pool.terminate()

    async def _commit_waiting(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            values = await self._commit_group([waiting.transaction for waiting in group])
            for waiting, value in zip(group, values, strict=True):
                if isinstance(value, BaseException):
                    waiting.answer.set_exception(value)
                else:
                    waiting.answer.set_result(value)

    async def _commit_group(self, transactions: Sequence[Callable[[], Transaction[Any]]]) -> Sequence[Any]:
        """Commit the transactions together. If that fails, run each alone, so that each gets its own error."""
        try:
            return await self._commit(transactions)
        except Unavailable as outage:
            return [outage] * len(transactions)
        except Exception:  # noqa: BLE001 - the transaction that raised it raises it again
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
            return [await run_transaction(connection, transaction()) for transaction in transactions]

    @asynccontextmanager
    async def _connection(self, pool: asyncpg.Pool[asyncpg.Record] | None = None) -> AsyncIterator[Any]:
        """Lend a connection; terminate it after an outage."""
        pool = pool or self._pool
        try:
            async with pool.acquire(timeout=ACQUIRE_TIMEOUT) as connection:
                try:
                    yield connection
                except OUTAGES:
                    # Terminate at once: asyncpg would cancel the statement that timed out. A COMMIT that is cancelled
                    # while it waits for its standby becomes visible, but is lost with the primary.
                    connection.terminate()
                    raise
        except asyncpg.DataError:  # asyncpg derives it from InterfaceError, but it is a bug, not an outage
            raise
        except OUTAGES as error:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError | TimeoutError | ConnectionError):
                # The host is demoted, frozen or gone, and every connection of the pool leads to it.
                await pool.expire_connections()
            reason = "STORE_FULL" if isinstance(error, asyncpg.DiskFullError) else "STORE_UNAVAILABLE"
            raise Unavailable(f"the database: {type(error).__name__}", reason=reason, retry_after=1.0) from error


async def run_transaction(connection: Any, transaction: Transaction[T]) -> T:
    try:
        statement = next_statement(transaction, None)
        while True:
            sql, names = to_positional(statement.sql)
            found = await connection.fetch(sql, *(statement.parameters[name] for name in names))
            statement = next_statement(transaction, found)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
    finally:
        transaction.close()


async def define_clock(connection: Any) -> None:
    """Define `now_ms()`, unless another replica that starts at the same time does."""
    if await connection.fetchval("SELECT to_regprocedure('now_ms()')") is None:
        try:
            await connection.execute(NOW_MS)
        except (asyncpg.InternalServerError, asyncpg.UniqueViolationError):
            if await connection.fetchval("SELECT to_regprocedure('now_ms()')") is None:
                raise
