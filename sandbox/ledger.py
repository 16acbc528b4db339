"""Everything received, written with the work it caused."""

import json
import sqlite3
from datetime import UTC, datetime
from typing import Any

from sandbox.exchange import Answer, Call
from sandbox.state import now_ms


def outcome_of(answer: Answer) -> str:
    return answer.outcome or ("accepted" if answer.status < 400 else "refused")


def write(db: sqlite3.Connection, provider: str, call: Call, answer: Answer, fault: str | None) -> None:
    """Headers are left out altogether, so no credential can get in."""
    request = answer.request if answer.request is not None else dict(call.query + call.form)
    db.execute(
        "INSERT INTO ledger (at, provider, method, path, status, outcome, fault, idempotency_key, object_id, request)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now_ms(),
            provider,
            call.method,
            call.path,
            answer.status,
            outcome_of(answer),
            fault,
            answer.idempotency_key,
            answer.object_id,
            json.dumps(request, ensure_ascii=False),
        ),
    )


def read(db: sqlite3.Connection, provider: str | None, since: int, limit: int) -> list[dict[str, Any]]:
    """Oldest first, those with a number above `since`."""
    rows = db.execute(
        "SELECT * FROM ledger WHERE number > ?2 AND (?1 IS NULL OR provider = ?1) ORDER BY number LIMIT ?3",
        (provider, since, limit),
    )
    return [{**dict(row), "at": iso(row["at"]), "request": json.loads(row["request"])} for row in rows]


def iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
