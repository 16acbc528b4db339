"""Trouble on demand: which request or webhook it hits, and how often."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

PROVIDERS = ("stripe", "sendgrid", "twilio")
#: What strikes before anything is done, and after the work is committed.
BEFORE = ("status", "throttle", "reset")
REQUESTS = ("status", "throttle", "delay", "reset", "hang_after_accepting", "truncate", "alter")
WEBHOOKS = ("duplicate", "reorder", "drop")


@dataclass(frozen=True)
class Fault:
    kind: str
    status: int = 500
    #: How long a delay, a hang or a webhook held back lasts.
    seconds: float = 5.0
    #: Seconds, or any text such as a date: what the header says.
    retry_after: str | None = None
    #: The provider's own error code and text, where the usual ones of that status do not tell the story.
    code: str | None = None
    message: str | None = None
    #: A reset strikes after the work is committed instead of before it.
    after: bool = False
    #: Of `alter`: what an answer has instead, by the names of its outermost fields; null takes a field's value.
    fields: dict[str, Any] | None = None
    #: Stripe only: the answer is kept under the idempotency key and replayed. Stripe does so with a 500, which its API
    #: made, and not with a 502 or 503, which never reached it.
    stored: bool = False

    @property
    def seconds_to_wait(self) -> float:
        """Return `retry_after` where it is a number, else 1."""
        text = self.retry_after or ""
        return min(float(text), 1e9) if text.replace(".", "", 1).isdecimal() else 1.0

    @property
    def before_accepting(self) -> bool:
        return self.kind in BEFORE and not self.after


def from_json(content: dict[str, Any]) -> tuple[str, str, int, Fault]:
    """The provider, path, times and fault asked for; ValueError says what is wrong."""
    provider, kind = content.get("provider"), content.get("kind")
    if provider not in PROVIDERS:
        raise ValueError(f"provider: one of {', '.join(PROVIDERS)}")
    if kind not in REQUESTS + WEBHOOKS:
        raise ValueError(f"kind: one of {', '.join(REQUESTS + WEBHOOKS)}")
    times = int(content.get("times", 1))
    options = {name: value for name, value in content.items() if name not in ("provider", "path", "kind", "times")}
    unknown = options.keys() - Fault.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    status = int(options.pop("status", 500))
    if not 200 <= status <= 599:
        raise ValueError("status: 200 to 599")
    stored = bool(options.pop("stored", kind == "status" and status == 500))
    seconds = float(options.pop("seconds", Fault.seconds))
    if not isinstance(options.get("fields", {}), dict):
        raise TypeError("fields: an object")
    for name in ("code", "message", "retry_after"):
        if options.get(name) is not None:
            options[name] = str(options[name])
    if seconds < 0 or times < 0:
        raise ValueError("seconds and times: 0 or more")
    fault = Fault(kind, status=status, stored=stored, seconds=seconds, **options)
    return provider, str(content.get("path") or ""), times, fault


def add(db: sqlite3.Connection, content: dict[str, Any]) -> int:
    provider, path, times, fault = from_json(content)
    cursor = db.execute(
        "INSERT INTO faults (provider, path, kind, options, times) VALUES (?, ?, ?, ?, ?)",
        (provider, path, fault.kind, json.dumps(fault.__dict__), times),
    )
    return int(cursor.lastrowid or 0)


def take(db: sqlite3.Connection, provider: str, subject: str, kinds: tuple[str, ...]) -> Fault | None:
    """
    The oldest fault that is not used up and whose path is part of the subject; this counts as a hit.

    A request's subject is "POST /v1/payment_intents", a webhook's its event's type and URL.
    """
    row = db.execute(
        "UPDATE faults SET hits = hits + 1 WHERE number = (SELECT number FROM faults WHERE provider = ?"
        f" AND kind IN ({', '.join('?' * len(kinds))}) AND instr(?, path) > 0 AND (times = 0 OR hits < times)"
        " ORDER BY number LIMIT 1) RETURNING options",
        (provider, *kinds, subject),
    ).fetchone()
    return None if row is None else Fault(**json.loads(row["options"]))


def clear(db: sqlite3.Connection, provider: str | None) -> int:
    return db.execute("DELETE FROM faults WHERE ?1 IS NULL OR provider = ?1", (provider,)).rowcount


def all_faults(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute("SELECT number, provider, path, kind, options, times, hits FROM faults ORDER BY number")
    return [
        {**json.loads(row["options"]), **{name: row[name] for name in row.keys() if name != "options"}}  # noqa: SIM118 - a Row iterates over its values
        for row in rows
    ]
