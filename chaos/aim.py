"""
Kill processes at the very moment when the gateway's stored cursor is seen to move: python -m chaos.aim URL SECONDS PID…

What belongs to the cursor has to be stored by then. A process of its own, ahead of all others where that is allowed: in
a busy one, the moment would have passed. Exit code 0: it struck; 1: the cursor did not move in time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress

CURSOR = "SELECT cursor FROM watch_cursor"


def strike_at(url: str, until: float, strike: Callable[[], None]) -> bool:
    if url.startswith("sqlite:"):
        with suppress(sqlite3.Error):
            return in_file(url.removeprefix("sqlite:///"), until, strike)
        return False
    return asyncio.run(on_server(url, until, strike))


def in_file(path: str, until: float, strike: Callable[[], None]) -> bool:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", isolation_level=None, uri=True)) as db:
        before = db.execute(CURSOR).fetchone()
        while time.monotonic() < until:
            if db.execute(CURSOR).fetchone() != before:
                strike()
                return True
            time.sleep(0.00005)
    return False


async def on_server(url: str, until: float, strike: Callable[[], None]) -> bool:
    import asyncpg  # noqa: PLC0415 - takes as long as some cursors need to move

    try:
        connection = await asyncpg.connect(url, timeout=2)
        try:
            before = await connection.fetchval(CURSOR)
            while time.monotonic() < until:
                if await connection.fetchval(CURSOR) != before:
                    strike()
                    return True
        finally:
            connection.terminate()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
        pass
    return False


def main(url: str, seconds: float, pids: list[int]) -> int:
    targets = []
    for pid in pids:
        with suppress(ProcessLookupError):
            targets.append(os.pidfd_open(pid))  # stays the same process, whatever becomes of the number

    def strike() -> None:
        for target in targets:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(target, signal.SIGKILL)

    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    return 0 if targets and strike_at(url, time.monotonic() + seconds, strike) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), [int(pid) for pid in sys.argv[3:]]))
