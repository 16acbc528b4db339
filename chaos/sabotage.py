"""
Break one promise on purpose, in a copy of the tree, and see whether the judge finds it: python -m chaos.sabotage.

A judge that never finds anything proves nothing. Each sabotage is a few lines changed and the rule that has to notice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TREES = ("chaos", "gateway", "launch", "protos", "sandbox", "services", "tests")
#: Seconds that starting, settling and judging may take beside the trouble itself.
BESIDE = 420.0


@dataclass(frozen=True)
class Sabotage:
    file: str
    #: What stands there, once → what is put in its place.
    changes: Mapping[str, str]
    #: The kind of kill that shows it.
    emphasis: str
    #: The rule of the judge that has to be broken.
    rule: str


SABOTAGES = {
    "answer-before-commit": Sabotage(
        "gateway/webhooks.py",
        {
            "await self._database.add(inbox.take, events, context.trace())": (
                "later = self._database.add(inbox.take, events, context.trace())\n"
                "                asyncio.get_running_loop().call_later(0.2, asyncio.ensure_future, later)"
            )
        },
        "kill_after_answer",
        "a webhook answered with 200 counts",
    ),
    "act-unannounced": Sabotage(
        "services/chassis/queue/jobs.py",
        {
            "    if await maybe_one(MARK_ATTEMPTED, queue=job.queue, id=job.id, claims=job.claims, timeout=timeout_ms)"
            " is None:\n        raise LeaseLost(job.id)": "    del job, timeout_ms"
        },
        "kill_after_accepting",
        "nobody is mailed or texted twice",
    ),
    "cursor-before-jobs": Sabotage(
        "gateway/watcher.py",
        {
            "    for notice in found:\n        await jobs.add(": (
                "\n\nasync def add_all(found: Sequence[Notice], trace: str) -> None:\n"
                "    for notice in found:\n        await jobs.add("
            ),
            "await self._database.run(remember, cursor, response.cursor, found, trace)": (
                "await self._database.run(remember, cursor, response.cursor, found, trace)\n"
                "                await self._database.run(add_all, found, trace)"
            ),
        },
        "kill_at_cursor",
        "who has paid is told",
    ),
}


@dataclass(frozen=True)
class Wanted:
    names: Sequence[str]
    database: str
    seconds: float
    seed: int
    kills: int


def wanted() -> Wanted:
    parser = argparse.ArgumentParser(prog="python -m chaos.sabotage", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="sabotage", help=f"of {', '.join(SABOTAGES)}; default: all")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=40)
    given = parser.parse_args()
    if unknown := set(given.names) - set(SABOTAGES):
        parser.error(f"no such sabotage: {', '.join(sorted(unknown))}")
    return Wanted(given.names or list(SABOTAGES), given.database, given.seconds, given.seed, given.kills)


def copied(sabotage: Sabotage, folder: Path) -> Path:
    """Copy the tree and break the copy."""
    tree = folder / "tree"
    for name in TREES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = tree / sabotage.file
    text = file.read_text()
    for old, new in sabotage.changes.items():
        if text.count(old) != 1:
            raise LookupError(f"{sabotage.file} has changed: not once there is {old!r}")
        text = text.replace(old, new)
    file.write_text(text)
    return tree


def found(sabotage: Sabotage, wish: Wanted, folder: Path) -> list[dict[str, Any]]:
    """Run the broken copy; answers the findings of the rule that has to notice."""
    tree, report = copied(sabotage, folder), folder / "report.json"
    options = ["--database", wish.database, "--seconds", wish.seconds, "--seed", wish.seed, "--kills", wish.kills]
    options += ["--emphasis", sabotage.emphasis, "--folder", folder / "run", "--report", report]
    command = [sys.executable, "-m", "chaos", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'protos'}"}
    ran = subprocess.run(command, cwd=tree, env=environment, check=False, timeout=wish.seconds + BESIDE)
    if not report.exists():
        raise RuntimeError(f"the run ended with {ran.returncode} and without a report")
    return [finding for finding in json.loads(report.read_text())["findings"] if finding["rule"] == sabotage.rule]


def main() -> int:
    wish, unnoticed = wanted(), []
    for name in wish.names:
        print(f"\n== {name} ({wish.database})", flush=True)
        with tempfile.TemporaryDirectory(prefix="topsmile-sabotage-") as folder:
            Path(folder).chmod(0o755)  # PostgreSQL runs as its own user where we are root
            findings = found(SABOTAGES[name], wish, Path(folder))
        print(f"== {name}: found {len(findings)} times: {SABOTAGES[name].rule}", flush=True)
        if not findings:
            unnoticed.append(name)
    print(f"\n{'NOT NOTICED: ' + ', '.join(unnoticed) if unnoticed else 'every sabotage was noticed'}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
