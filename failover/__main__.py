"""
Kill the primary again and again under load, then judge what callers were told: python -m failover (`make failover`)

Exit code 0: every promise was kept; 1: one broke, or the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from failover import report
from failover.cluster import Cluster, cluster, missing
from failover.journal import KINDS, Journal
from failover.judge import Judge
from failover.kills import Kill, Killing
from failover.load import Callers, callers
from failover.system import System

#: Seconds that callers still have, after the last kill, to be acknowledged.
LAST_WORDS = 60.0


class Run:
    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._seed = seed
        self._started = time.monotonic()
        self._journal = Journal()

    def tell(self, what: str) -> None:
        print(f"{time.monotonic() - self._started:7.1f} s  {what}", flush=True)

    def tell_kill(self, kill: Kill) -> None:
        went_on = "did not go on" if kill.worst is None else f"went on after {kill.worst:.1f} s"
        promoted = "nobody promoted" if kill.promoted is None else f"new primary after {kill.promoted:.1f} s"
        done = sum(1 for call in self._journal.calls if call.id)
        self.tell(f"{kill.way} of {kill.node}: {promoted}, writes {went_on}; {done} acknowledged")

    async def make(self, folder: Path) -> dict[str, Any]:
        logs = folder / "log"
        logs.mkdir()
        async with cluster(logs) as databases:
            self.tell("three PostgreSQL nodes are up, one of them in step with the primary")
            system = System(databases, folder)
            try:
                await asyncio.to_thread(system.start)
                self.tell("two replicas of each process are up")
                async with callers(system, self._journal) as calling:
                    return await self._under_load(databases, system, calling)
            finally:
                await asyncio.to_thread(system.stop)

    async def _under_load(self, databases: Cluster, system: System, calling: Callers) -> dict[str, Any]:
        killing = Killing(databases, system, self._journal, self._seed)
        load = asyncio.create_task(calling.run(self._seed))
        try:
            await self._warm()
            await killing.run(self._seconds, self.tell_kill)
            calling.stop()
            await asyncio.wait([load], timeout=LAST_WORDS)
        finally:
            load.cancel()
            await asyncio.wait([load])
        unanswered = [f"{call.key}: never acknowledged" for call in self._journal.calls if not call.id]
        self.tell(f"{len(killing.kills)} kills; judging {len(self._journal.calls)} calls")
        verdict = await Judge(databases, system, calling, self._journal).settled()
        options = {"seconds": self._seconds, "seed": self._seed}
        numbers = report.figures(self._journal, killing.kills, verdict, system.ended)
        return options | numbers | {"findings": report.findings(self._journal, killing.kills, verdict, unanswered)}

    async def _warm(self) -> None:
        """Begin when everything has worked once: what never worked cannot go on."""
        async with asyncio.timeout(60.0):
            while not all(self._journal.acknowledged[kind] for kind in KINDS):  # noqa: ASYNC110 - seconds, once
                await asyncio.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m failover", description="Kill the primary under load, and judge.")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to kill (300)")
    parser.add_argument("--seed", type=int, default=1, help="which kills, in which order (1)")
    parser.add_argument("--report", type=Path, help="where to write the report as JSON")
    given = parser.parse_args()
    if lacking := missing():
        print(f"missing: apt-get install {' '.join(lacking)}")
        return 1
    folder = Path(mkdtemp(prefix="topsmile-failover-system-"))
    made = asyncio.run(Run(given.seconds, given.seed).make(folder))
    if given.report is not None:
        given.report.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    print(report.text_of(made))
    if any(made["findings"].values()):
        print(f"logs are in {folder}/log")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
