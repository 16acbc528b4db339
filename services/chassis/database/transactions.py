"""
Transactions as values: an `async def` that awaits nothing but statements.

A transaction holds no connection. It yields `Statement`s and receives rows, so SQLite, PostgreSQL and a test can each
run it with their own connection.

* It is pure: no clock (`now_ms()` is SQL), no randomness, no side effect. It may run again.
* It composes by `await`; mypy reports a forgotten one.
* A database error ends it without resuming it. An exception that it raises rolls it back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

Transaction: TypeAlias = Coroutine[Any, Any, T]


class Row(Protocol):
    """The common part of sqlite3.Row and asyncpg.Record: columns by name, and `**` into a dataclass."""

    def keys(self) -> Any: ...
    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True)
class Statement:
    """SQL for both databases, with `:name` parameters."""

    sql: str
    parameters: Mapping[str, object]

    def __await__(self) -> Generator[Statement, Sequence[Row], Sequence[Row]]:
        return (yield self)


async def rows(sql: str, **parameters: object) -> Sequence[Row]:
    return await Statement(sql, parameters)


async def maybe_one(sql: str, **parameters: object) -> Row | None:
    found = await rows(sql, **parameters)
    return found[0] if found else None


async def one(sql: str, **parameters: object) -> Row:
    """Return the only row; raise ValueError if there is none or more than one."""
    (found,) = await rows(sql, **parameters)
    return found


class Database(Protocol):
    """
    The durable store of a process.

    `run` commits before it returns. It raises what the transaction raises, or errors.Unavailable: STORE_FULL means that
    the disk is full and nothing was stored; after STORE_UNAVAILABLE the commit may have happened, and repeating is
    safe. Cancelling the caller does not stop the transaction.
    """

    #: Milliseconds that are added to the database's clock. Tests move time with it.
    offset_ms: int

    async def run(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def add(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, for a transaction that changes no row that others wait for: it may be committed with others."""
        ...

    async def read(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a transaction that only reads; it does not wait for writers."""
        ...

    async def ready(self) -> None:
        """Store something; raise errors.Unavailable if that is not possible now."""
        ...

    async def close(self) -> None: ...


def next_statement(transaction: Transaction[Any], found: Sequence[Row] | None) -> Statement:
    """Resume a transaction until its next statement; StopIteration carries its result."""
    statement = transaction.send(found)
    if not isinstance(statement, Statement):
        transaction.close()
        raise TypeError(f"a transaction must await statements only, not {statement!r}")
    return statement
