"""
Transactions as values: an `async def` that awaits nothing but statements.

A transaction holds no connection. It yields `Statement`s and is sent rows, so whoever has a connection can drive it by
hand: SQLite in its one writer thread, PostgreSQL inside a connection's transaction, a test step by step.

* It is pure: no clock (`now_ms()` is SQL), no randomness, no side effect. It may be run again.
* It composes by `await`; mypy reports a forgotten one.
* An error of the database never resumes it. What it raises itself rolls it back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

Transaction: TypeAlias = Coroutine[Any, Any, T]


class Row(Protocol):
    """What sqlite3.Row and asyncpg.Record have in common: columns by name, and `**` into a dataclass."""

    def keys(self) -> Any: ...
    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True)
class Statement:
    """SQL that both databases understand, with `:name` parameters."""

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
    """Return the only row; an absent one is a bug of ours."""
    (found,) = await rows(sql, **parameters)
    return found


class Database(Protocol):
    """
    Where a process keeps what it must not lose.

    `run` commits before it returns or raises what the transaction raised; errors.Unavailable means that the database
    could not take it (reason STORE_FULL: the disk is full, nothing was stored; STORE_UNAVAILABLE: the commit may or may
    not have happened, repeating is safe). Cancelling the caller does not stop the transaction.
    """

    #: Milliseconds added to the database's clock, the only clock there is. Tests move time with it.
    offset_ms: int

    async def run(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def add(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, for a transaction that changes no row that others wait for: it may be committed with others."""
        ...

    async def read(self, transaction: Callable[P, Transaction[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a transaction that only reads; it never waits behind the writers."""
        ...

    async def ready(self) -> None:
        """Store something; raises errors.Unavailable when that is not possible now."""
        ...

    async def close(self) -> None: ...


def next_statement(transaction: Transaction[Any], found: Sequence[Row] | None) -> Statement:
    """Resume a transaction until its next statement; StopIteration carries its result."""
    asked = transaction.send(found)
    if not isinstance(asked, Statement):
        transaction.close()
        raise TypeError(f"a transaction awaits statements only, not {asked!r}")
    return asked
