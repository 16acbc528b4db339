"""
The modes that operators set on circuit breakers: rows that every replica reads once a second.

No call reads them. Where the database is away, each breaker stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from services.chassis.database.transactions import Database, Row, rows
from services.chassis.errors import Unavailable
from services.chassis.outbound.breaker import CircuitBreaker

AUTOMATIC, FORCED_OPEN = "AUTOMATIC", "FORCED_OPEN"
POLL = 1.0  # seconds

LIST = "SELECT breaker, mode, reason, set_by, set_at, version FROM breaker_mode"
SET = """
    INSERT INTO breaker_mode (breaker, mode, reason, set_by, set_at, version)
    VALUES (:breaker, :mode, :reason, :caller, now_ms(), 1)
    ON CONFLICT (breaker) DO UPDATE SET mode = excluded.mode, reason = excluded.reason, set_by = excluded.set_by,
        set_at = excluded.set_at, version = breaker_mode.version + 1
"""


async def set_mode(breaker: str, mode: str, reason: str, caller: str) -> None:
    await rows(SET, breaker=breaker, mode=mode, reason=reason, caller=caller)


async def modes() -> Mapping[str, Row]:
    """Return the rows of the breakers that an operator has set, by name."""
    return {row["breaker"]: row for row in await rows(LIST)}


class BreakerModes:
    """Applies the rows to the breakers of this process."""

    def __init__(self, database: Database, breakers: Sequence[CircuitBreaker]) -> None:
        self._database = database
        self.breakers: Mapping[str, CircuitBreaker] = {breaker.name: breaker for breaker in breakers}
        self._applied: dict[str, int] = {}  #: Breaker → the version that was applied last.
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        while not self._stopped.is_set():
            with suppress(Unavailable):
                await self.apply()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), POLL)

    async def apply(self) -> Mapping[str, Row]:
        """Apply what changed since the last time; return the rows by breaker."""
        found = await self._database.read(modes)
        for name, row in found.items():
            breaker = self.breakers.get(name)
            if breaker is None or self._applied.get(name) == row["version"]:
                continue
            self._applied[name] = row["version"]
            if row["mode"] == FORCED_OPEN:
                breaker.force_open()
            else:
                breaker.release()
        return found
