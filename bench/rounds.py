"""Contestants in turn, round after round, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias

Measure: TypeAlias = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Contestant:
    name: str
    #: Starts it and gives what measures it once.
    start: Callable[[], AbstractContextManager[Measure]]


@dataclass(frozen=True)
class Ratio:
    """What is hoped for: a figure of one contestant against another's."""

    of: str
    to: str
    at_most: float
    figure: str = "cpu_ms_per_1000"


@dataclass
class Part:
    title: str
    contestants: Sequence[Contestant]
    ratios: Sequence[Ratio] = ()
    rounds: int = 5
    #: Whether a first measurement of each warms up and does not count.
    warm: bool = True
    seen: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def run(self, rounds: int | None = None) -> None:
        with ExitStack() as stack:
            measures = {each.name: stack.enter_context(each.start()) for each in self.contestants}
            for number in range(0 if self.warm else 1, (rounds or self.rounds) + 1):
                for name, measure in random.sample(list(measures.items()), len(measures)):
                    _progress(f"{self.title}, round {number or 'warm-up'}: {name}")
                    figures = measure()
                    if number:
                        self.seen.setdefault(name, []).append(figures)
        _progress("")

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            name: {figure: median(each[figure] for each in samples) for figure in samples[0]}
            for name, samples in self.seen.items()
        }

    def ratio(self, wanted: Ratio) -> float | None:
        """Compare within rounds, and take the median of that."""
        ours, theirs = self.seen.get(wanted.of), self.seen.get(wanted.to)
        if not ours or not theirs:
            return None
        return median(one[wanted.figure] / other[wanted.figure] for one, other in zip(ours, theirs, strict=True))

    def table(self) -> str:
        medians = self.medians()
        figures = list(dict.fromkeys(figure for row in medians.values() for figure in row))
        names = [each.name for each in self.contestants if each.name in medians]
        lines = [f"### {self.title}", "", "| | " + " | ".join(map(words, figures)) + " |"]
        lines.append("|---|" + "---:|" * len(figures))
        for name in names:
            cells = [shown(medians[name].get(figure)) for figure in figures]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for wanted in self.ratios:
            found = self.ratio(wanted)
            if found is not None:
                lines += ["", f"{wanted.of} / {wanted.to}, {words(wanted.figure)}: {found:.2f}"]
                lines[-1] += f" (hoped for: at most {wanted.at_most})"
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        ratios = [{**vars(wanted), "ratio": self.ratio(wanted)} for wanted in self.ratios]
        return {"title": self.title, "medians": self.medians(), "ratios": ratios, "rounds": self.seen}


def words(figure: str) -> str:
    return figure.replace("_per_", " / ").replace("_", " ")


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
