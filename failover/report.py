"""What a run showed, for people and for programs."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from statistics import median
from typing import Any

from failover.cluster import BINARIES
from failover.journal import KINDS, Journal
from failover.judge import Verdict
from failover.kills import WITHIN, Kill

SHOWN = 20


def findings(journal: Journal, kills: list[Kill], verdict: Verdict, unanswered: list[str]) -> dict[str, list[str]]:
    """Each promise with what broke it; nothing anywhere is success."""
    late = [
        f"kill {number} ({kill.way} of {kill.node}): {', '.join(kind for kind, s in kill.went_on.items() if s is None)}"
        f" did not go on within {WITHIN:.0f} s"
        for number, kill in enumerate(kills, 1)
        if kill.worst is None
    ]
    return {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "stuck": verdict.stuck,
        "wrong": journal.wrong,
        "late": late,
        "unanswered": unanswered,
    }


def figures(journal: Journal, kills: list[Kill], verdict: Verdict, ended: list[str]) -> dict[str, Any]:
    recovered = [kill.worst for kill in kills if kill.worst is not None]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(*command) for name, command in PROGRAMS.items()},
        "calls": dict(Counter(call.kind for call in journal.calls)),
        "acknowledged": dict(Counter(call.kind for call in journal.calls if call.id)),
        "judged": verdict.judged,
        "refusals": dict(journal.refusals),
        "processes_ended": ended,
        "kills": dict(Counter(kill.way for kill in kills)),
        "promoted": spread([kill.promoted for kill in kills if kill.promoted is not None]),
        "writes_go_on": spread(recovered)
        | {
            way: spread([k.worst for k in kills if k.way == way and k.worst is not None])
            for way in {k.way for k in kills}
        },
        "writes_go_on_by_kind": {
            kind: spread([s for kill in kills if (s := kill.went_on.get(kind)) is not None]) for kind in KINDS
        },
        "each_kill": [
            {"way": kill.way, "node": kill.node, "at": kill.at, "promoted": kill.promoted, "went_on": kill.went_on}
            for kill in kills
        ],
    }


def text_of(report: dict[str, Any]) -> str:
    """The report as text, its last line the verdict."""
    lines = [
        f"{report['machine']}; {', '.join(report['versions'].values())}; seed {report['seed']}",
        f"calls          {report['calls']}, acknowledged {report['acknowledged']}",
        f"kills          {report['kills']}",
        f"new primary    {_spread(report['promoted'])}",
        f"writes go on   {_spread(report['writes_go_on'])}",
    ]
    lines += [f"  by {kind:11} {_spread(each)}" for kind, each in report["writes_go_on_by_kind"].items()]
    if report["processes_ended"]:
        lines.append(f"ended by themselves: {report['processes_ended']}")
    for promise, stories in report["findings"].items():
        lines.append(f"{promise:14} {len(stories)}")
        lines += [f"  {story}" for story in stories[:SHOWN]]
        if len(stories) > SHOWN:
            lines.append(f"  … and {len(stories) - SHOWN} more in the JSON report")
    broken = [promise for promise, stories in report["findings"].items() if stories]
    lines.append(f"failover broken: {', '.join(broken)}" if broken else "failover ok: 0 lost, 0 doubled, 0 stuck")
    return "\n".join(lines)


def spread(seconds: list[float]) -> dict[str, Any]:
    """The middle and the worst, over so many."""
    if not seconds:
        return {"of": 0}
    return {"p50": round(median(seconds), 1), "worst": round(max(seconds), 1), "of": len(seconds)}


def _spread(each: dict[str, Any]) -> str:
    return f"p50 {each['p50']} s, worst {each['worst']} s (of {each['of']})" if each["of"] else "never"


PROGRAMS = {
    "postgresql": (f"{BINARIES}/postgres", "--version"),
    "patroni": ("patroni", "--version"),
    "etcd": ("etcd", "--version"),
}


def version(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip()
