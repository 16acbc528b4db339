"""The requests of callers and the responses that they received: the first half of the evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO


@dataclass
class Operation:
    """
    One wish of a caller, under one key, asked until it is answered for good.

    Every recipient is in one operation only, so that what arrives there can only be its doing.
    """

    key: str
    #: payment, confirmation, reminder, code or text.
    kind: str
    via: str
    appointment: str
    email: str = ""
    phone: str = ""
    #: Not to be sent before then (epoch seconds); 0: at once.
    due_at: float = 0.0
    #: What the customer does with a payment: pay, decline or nothing.
    decision: str = ""
    asked_at: float = field(default_factory=time.time)
    answered_at: float | None = None
    tries: int = 0
    #: Ids by service, of the answer that ended the asking.
    ids: dict[str, str] = field(default_factory=dict)
    #: The ids of every response, also of repetitions of the key after the first one.
    returned: list[dict[str, str]] = field(default_factory=list)
    #: A refusal that no repetition changes.
    refusal: str = ""
    #: Answers that say "a bug of ours".
    bugs: list[str] = field(default_factory=list)
    last_trouble: str = ""
    decided: bool = False

    @property
    def answered(self) -> bool:
        return self.answered_at is not None

    def tell(self, ids: Mapping[str, str]) -> None:
        self.returned.append(dict(ids))


class Journal:
    """All operations of a run and all that was done to it, on disk as they happen."""

    def __init__(self, folder: Path) -> None:
        self.operations: list[Operation] = []
        self.events: list[dict[str, object]] = []
        self._file: IO[str] = (folder / "journal.jsonl").open("w")

    def event(self, what: str, target: str, **more: object) -> None:
        entry: dict[str, object] = {"at": time.time(), "what": what, "target": target, **more}
        self.events.append(entry)
        self._write(entry)

    def answered(self, operation: Operation) -> None:
        self._write({"at": time.time(), "what": "answered", **asdict(operation)})

    def _write(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
