"""The responses that callers received, and when. The judge uses nothing else about them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

#: What is called: each stores something in another process's database.
KINDS = ("payment", "email", "sms", "webhook")


class Refused(Exception):  # noqa: N818 - an answer
    """No: for now, or with `final` for good, which no call of ours deserves."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


@dataclass
class Call:
    """One thing that somebody wants done, repeated under its key until it is acknowledged."""

    kind: str
    number: int
    key: str
    #: The id that was answered; empty: never acknowledged, so nothing is promised but that it is not done twice.
    id: str = ""

    @property
    def phone(self) -> str:
        """Each call has a recipient of its own, so that everything that was sent is known by its recipient."""
        return f"+55119{50_000_000 + self.number}"

    @property
    def address(self) -> str:
        return f"ana+{self.number}@example.com"


@dataclass
class Journal:
    calls: list[Call] = field(default_factory=list)
    #: By kind: when an acknowledged attempt began, and when it was acknowledged.
    acknowledged: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    refusals: Counter[str] = field(default_factory=Counter)
    #: Answers that no caller may ever get.
    wrong: list[str] = field(default_factory=list)

    def call(self, kind: str) -> Call:
        number = len(self.calls)
        made = Call(kind, number, f"failover-{kind}-{number}")
        self.calls.append(made)
        return made

    def record_response(self, call: Call, id: str, began: float) -> None:
        if call.id and call.id != id:
            self.wrong.append(f"{call.key}: answered {call.id} first and {id} when repeated")
        if not call.id:  # a repetition stores nothing new, so it shows nothing
            self.acknowledged[call.kind].append((began, time.monotonic()))
        call.id = call.id or id

    def refused(self, call: Call, refusal: Refused) -> None:
        self.refusals[f"{call.kind} {refusal.reason}"] += 1
        if refusal.final:
            self.wrong.append(f"{call.key}: refused for good with {refusal.reason}")

    def of(self, kind: str) -> Iterator[Call]:
        return (call for call in self.calls if call.kind == kind)

    def went_on(self, kind: str, since: float) -> float | None:
        """Seconds until an attempt of this kind was acknowledged that began after `since`."""
        return min((ended - since for began, ended in self.acknowledged[kind] if began >= since), default=None)
