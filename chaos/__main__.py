"""
Break everything at random for a while and see whether the promises hold: python -m chaos --help (`make chaos`).

Touches nothing but what it starts itself, on loopback, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
from pathlib import Path

import aiohttp

from chaos.evidence import gather
from chaos.judge import judge
from chaos.load import load
from chaos.operations import Journal
from chaos.report import Report, report
from chaos.schedule import AIMS, schedule
from chaos.settle import Settling
from chaos.system import System, emptied, running
from chaos.trouble import Trouble

PROGRESS = 5.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    database: str
    seconds: float
    seed: int
    kills: int
    callers: int
    emphasis: str
    patience: float
    folder: Path
    report: Path | None


def wanted(arguments: list[str] | None = None) -> Wanted:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of load and trouble; start and settling come on top"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed plans the same trouble")
    parser.add_argument("--kills", type=int, default=0, help="how many are planned (default: one in two seconds)")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--emphasis", choices=("", *AIMS), default="", help="the kind that most kills are of")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds to settle in")
    parser.add_argument("--folder", type=Path, default=Path("var/chaos"), help="emptied first; logs stay there")
    parser.add_argument("--report", type=Path, default=None, help="where the JSON goes")
    given = vars(parser.parse_args(arguments))
    return Wanted(**{**given, "kills": given["kills"] or int(given["seconds"] / 2)})


async def run(wish: Wanted) -> Report:
    folder = emptied(wish.folder)
    journal = Journal(folder)
    try:
        async with (
            running(wish.database, folder) as system,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as http,
        ):
            await system.wait(http)
            say(f"up on {wish.database}: {', '.join(system.names)}")
            return await under_fire(wish, system, journal, http)
    finally:
        journal.close()


async def under_fire(wish: Wanted, system: System, journal: Journal, http: aiohttp.ClientSession) -> Report:
    trouble = Trouble(system, journal, http, wish.seed)
    settling = Settling(system, journal, http, trouble)
    telling = asyncio.create_task(progress(journal, trouble))
    async with load(system, journal, wish.seed) as callers_of:
        calling = asyncio.create_task(callers_of.callers(wish.callers))
        try:
            await asyncio.wait_for(
                trouble.run(schedule(wish.seed, wish.seconds, wish.kills, wish.database, wish.emphasis)),
                wish.seconds + 120,
            )
            say("no more trouble; settling")
            settled_after = await settling.settle(callers_of, calling, wish.patience)
        finally:
            calling.cancel()
            telling.cancel()
            await asyncio.gather(calling, telling, trouble.close(), return_exceptions=True)
    say("settled; judging" if settled_after is not None else "did not settle; judging all the same")
    evidence = await gather(system, journal.operations, journal.events)
    evidence.waited_out_at = settling.waited_out_at
    findings = judge(evidence)
    what = (wish.database, wish.seed, wish.seconds)
    return report(what, system, journal, trouble, evidence, findings, settled_after)


async def progress(journal: Journal, trouble: Trouble) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS)
        count = len(journal.operations)
        answered = sum(operation.answered for operation in journal.operations)
        down = f"; down: {', '.join(trouble.down)}" if trouble.down else ""
        passed = time.monotonic() - began
        say(f"{passed:4.0f} s  {answered} of {count} answered, {sum(trouble.kills.values())} kills{down}")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    wish = wanted()
    made = asyncio.run(run(wish))
    say(f"\n{made.text()}\nlogs and journal in {wish.folder}")
    if wish.report is not None:
        made.write(wish.report)
    return 0 if made.kept else 1


if __name__ == "__main__":
    sys.exit(main())
