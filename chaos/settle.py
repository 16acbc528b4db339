"""
After the trouble: every fault taken back, everything started again, and time to come to an end.

Some of it would take real time: a provider's next try at a webhook, a back-off, the ten minutes that an email waits for
an event after its answer was lost. That time is made to have passed, in the order in which it would.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp

from chaos.database import PROCESSES
from chaos.load import Load
from chaos.operations import Journal
from chaos.system import SERVICES, System, process_of
from chaos.trouble import Trouble

#: Jobs that were put off are due now. Those that wait for their own time or for a morning are not among them.
DUE_NOW = """UPDATE job SET due_at = now_ms() WHERE state = 'queued' AND due_at > now_ms()
    AND note NOT IN ('', 'QUIET_HOURS')"""
PAUSE_OVER = "UPDATE rate_limit SET paused_until = 0 WHERE paused_until > now_ms()"
#: An open payment is read again in minutes, which is how one ends whose only webhook was dropped.
READINGS_DUE = "UPDATE job SET due_at = now_ms() WHERE state = 'queued' AND due_at > now_ms() AND id LIKE '%/read/%'"
#: The time in which a lost answer may still be told by the provider is over: SendGrid's ten minutes, Twilio's one.
WAITED_OUT = {
    "email": """UPDATE message SET outcome_unknown_since = outcome_unknown_since - 600000
        WHERE outcome_unknown_since > now_ms() - 600000""",
    "sms": """UPDATE message SET outcome_unknown_since = outcome_unknown_since - 60000
        WHERE outcome_unknown_since > now_ms() - 60000""",
}
OPEN = """SELECT COUNT(*) AS count FROM job WHERE state = 'running'
    OR (state = 'queued' AND (due_at <= now_ms() + 20000 OR note NOT IN ('', 'QUIET_HOURS')))"""


class Settling:
    def __init__(self, system: System, journal: Journal, http: aiohttp.ClientSession, trouble: Trouble) -> None:
        self._system, self._journal, self._http, self._trouble = system, journal, http, trouble
        #: When the waiting for providers was cut short; 0: it never had to be.
        self.waited_out_at = 0.0
        self._read_again = False

    async def settle(self, load: Load, callers: asyncio.Task[None], patience: float) -> float | None:
        """Seconds until everything had come to its end; None: it did not within the time it was given."""
        began = time.monotonic()
        load.end()
        await self._system.stores.revive()
        await self._everything_anew()
        while time.monotonic() < began + patience:
            if callers.done():
                callers.result()  # raises what ended a caller early
            if await self._quiet() and callers.done():
                return round(time.monotonic() - began, 1)
            await asyncio.sleep(1.0)
        return None

    async def _everything_anew(self) -> None:
        """Breakers that opened in the trouble would keep everybody waiting for minutes."""
        await self._system.wait(self._http)
        async with self._http.delete(f"{self._system.sandbox}/_sandbox/faults"):
            pass
        for name in self._system.names:
            if process_of(name) != "sandbox":
                self._trouble.kill(name, "to begin anew")
        await asyncio.sleep(0.5)
        await self._system.wait(self._http)
        self._journal.event("settling", "system")

    async def _quiet(self) -> bool:
        """Look whether anything is left to do, and let time pass for what only waits for it."""
        try:
            async with self._http.post(f"{self._system.sandbox}/_sandbox/webhooks/flush") as answer:
                waiting = (await answer.json())["flushed"]
            left = {process: await self._left(process) for process in PROCESSES}
            for process in PROCESSES if not waiting else ("gateway",):
                await self._system.stores.query(process, PAUSE_OVER)
                await self._system.stores.query(process, DUE_NOW)
            if not waiting and not left["gateway"] and any(left.values()):
                await self._wait_out()
            quiet = not waiting and not any(left.values())
            if quiet and not self._read_again:
                await self._system.stores.query("payments", READINGS_DUE)
                self._read_again, quiet = True, False
        except (aiohttp.ClientError, OSError):
            return False
        return quiet

    async def _left(self, process: str) -> int:
        ((row),) = await self._system.stores.query(process, OPEN)
        return int(row["count"])

    async def _wait_out(self) -> None:
        """Only when every event that providers owe us is in: otherwise they would be waited for in vain."""
        self.waited_out_at = self.waited_out_at or time.time()
        for process in SERVICES:
            if process in WAITED_OUT:
                await self._system.stores.query(process, WAITED_OUT[process])
                await self._system.stores.query(process, DUE_NOW)
