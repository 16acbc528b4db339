"""What came of a run: figures for people and for machines, and each broken promise with the story of its job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos.evidence import Evidence, logged
from chaos.judge import Finding, counted
from chaos.operations import Journal
from chaos.system import System
from chaos.trouble import Trouble

BROKEN = ("lost", "doubled", "stuck", "wrong")
#: The lines of one finding, and the findings shown in full.
LINES, STORIES = 40, 12
#: What of a log's line tells the story.
WORDS = (
    "event",
    "process",
    "job",
    "outcome",
    "reason",
    "claims",
    "outcome_unknown",
    "rpc",
    "method",
    "route",
    "code",
    "status",
)


@dataclass(frozen=True)
class Report:
    database: str
    seed: int
    seconds: float
    operations: Mapping[str, int]
    answered: int
    kills: Mapping[str, int]
    trouble: Mapping[str, int]
    verdicts: Mapping[str, int]
    allowed: Mapping[str, int]
    #: Seconds from a kill until the process was ready again, the worst by process; the longest a caller was kept.
    recovery: Mapping[str, float]
    slowest_answer: float
    #: Seconds from the end of the trouble until nothing was left to do; None: something still was.
    settled_after: float | None
    findings: Sequence[Mapping[str, Any]]

    @property
    def kept(self) -> bool:
        return not any(self.verdicts[verdict] for verdict in BROKEN)

    def text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.database}, seed {self.seed}, {self.seconds:.0f} s of trouble"
        yield f"  operations    {listed(self.operations)}; answered {self.answered} of {sum(self.operations.values())}"
        yield f"  kills         {sum(self.kills.values())}: {listed(self.kills)}"
        yield f"  trouble       {listed(self.trouble)}"
        slowest = f"slowest answer {self.slowest_answer:.1f} s"
        yield f"  ready again   worst after a kill: {listed(self.recovery)} s; {slowest}"
        settled = (
            "NOT SETTLED" if self.settled_after is None else f"settled {self.settled_after:.1f} s after the last of it"
        )
        yield f"  settled       {settled}"
        yield f"  allowed       {listed(self.allowed) or 'nothing had to be'}"
        yield f"  verdict       {', '.join(f'{self.verdicts[verdict]} {verdict}' for verdict in BROKEN)}"
        for finding in [f for f in self.findings if f["verdict"] in BROKEN][:STORIES]:
            yield f"\n  {finding['verdict'].upper()}: {finding['rule']}: {finding['sentence']}"
            yield f"    {' '.join(part for part in finding['about'] if part)}"
            yield from (f"    {line}" for line in finding["story"])
        hidden = sum(1 for f in self.findings if f["verdict"] in BROKEN) - STORIES
        if hidden > 0:
            yield f"\n  and {hidden} findings more, in the JSON"
        yield f"\n{'every promise kept' if self.kept else 'PROMISES BROKEN'}"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({**asdict(self), "kept": self.kept}, indent=1, ensure_ascii=False) + "\n")


def listed(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def report(  # noqa: PLR0917 - all that a run leaves behind
    what: tuple[str, int, float],
    system: System,
    journal: Journal,
    trouble: Trouble,
    evidence: Evidence,
    findings: Sequence[Finding],
    settled_after: float | None,
) -> Report:
    database, seed, seconds = what
    answered = [operation for operation in journal.operations if operation.answered]
    stories = Stories(system, journal, evidence)
    return Report(
        database=database,
        seed=seed,
        seconds=seconds,
        operations=dict(Counter(operation.kind for operation in journal.operations)),
        answered=len(answered),
        kills=dict(trouble.kills),
        trouble=dict(trouble.counts),
        verdicts=counted(findings),
        allowed=dict(Counter(finding.rule for finding in findings if finding.verdict == "allowed")),
        recovery=trouble.recovery,
        slowest_answer=max([(o.answered_at or 0.0) - o.asked_at for o in answered], default=0.0),
        settled_after=settled_after,
        findings=[{**asdict(finding), "story": stories.of(finding)} for finding in findings],
    )


class Stories:
    """The lines of all logs, the ledgers and the journal, in the order of time."""

    def __init__(self, system: System, journal: Journal, evidence: Evidence) -> None:
        self._journal, self._evidence = journal, evidence
        self._lines = [(name, line) for name in system.names for line in logged(system, name)]

    def of(self, finding: Finding) -> list[str]:
        wanted = [part for part in finding.about if part]
        lines = [*self._logs(wanted), *self._posts(wanted)]
        lines += self._kills([when for when, _ in lines])
        return [line for _, line in sorted(lines)[:LINES]]

    def _logs(self, wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
        for name, line in self._lines:
            if any(part in line for part in wanted):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                words = " ".join(f"{word}={entry[word]}" for word in WORDS if entry.get(word) not in (None, ""))
                yield str(entry.get("timestamp", "")), f"{str(entry.get('timestamp', ''))[11:23]} {name}: {words}"

    def _posts(self, wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
        for post in self._evidence.posts:
            if post.message_id in wanted:
                when = moment(post.at)
                detail = f"accepted {post.message_id} as {post.object_id}, claim {post.attempt}"
                yield when, f"{when[11:23]} {post.provider}: {detail}"
        for webhook in self._evidence.webhooks:
            if webhook.about in wanted and webhook.told_at:
                when = moment(webhook.told_at)
                yield when, f"{when[11:23]} {webhook.provider}: its {webhook.subject} was taken with a 200"

    def _kills(self, moments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What was done to the system between the first and the last line of a story."""
        if not moments:
            return
        first, last = min(moments), max(moments)
        for event in self._journal.events:
            when = moment(float(str(event["at"])))
            if event["what"] in {"kill", "freeze"} and first <= when <= last:
                yield when, f"{when[11:23]} -- {event['what']} {event['target']} {event.get('why', '')}".rstrip()


def moment(at: float) -> str:
    """As the logs write it, so that both sort together."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
