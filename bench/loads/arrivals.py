"""
Arrivals by schedule: they do not wait for answers, as the world does not.

An arrival counts as offered when it was due, and as sent when the server got it. Those that find as many unanswered
as the generator may have are neither queued nor sent later: `unsent` says how many.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TICK = 0.002


class Tally:
    """What became of each. Latencies are from sending to the answer, in tenths of milliseconds, by how often."""

    def __init__(self, accepted: Path, at_most: int) -> None:
        self._keys = accepted.open("w")
        self.at_most = at_most
        self.unanswered = self.offered = self.unsent = 0
        self.codes: Counter[str] = Counter()
        self.hinted = 0
        self.accepted: Counter[int] = Counter()
        self.shed: Counter[int] = Counter()
        self.ended_at = 0.0

    async def arrive(self, rate: float, seconds: float, send: Callable[[], bool]) -> None:
        """Call `send` by schedule; it says whether it could."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            due = int(rate * passed) - self.offered
            for _ in range(due):
                if self.unanswered >= self.at_most or not send():
                    self.unsent += 1
                else:
                    self.unanswered += 1
            self.offered += due
            await asyncio.sleep(TICK)
        self.ended_at = time.time()
        until = time.monotonic() + 15
        while self.unanswered and time.monotonic() < until:  # noqa: ASYNC110 - thousands would set an event
            await asyncio.sleep(0.02)

    def answered(self, began: float, code: str, key: str = "", *, hint: bool = False) -> None:
        """Take an answer; one with a key was accepted."""
        self.unanswered -= 1
        self.codes[code] += 1
        tenths = int((time.perf_counter() - began) * 10_000)
        if key:
            self._keys.write(key + "\n")
            self.accepted[tenths] += 1
        else:
            self.shed[tenths] += 1
            self.hinted += hint

    def tell(self) -> None:
        self._keys.close()
        self.codes["no answer"] += self.unanswered
        fields = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        print(json.dumps(fields))
