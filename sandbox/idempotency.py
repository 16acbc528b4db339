"""Stripe's idempotency keys: the first answer is kept and repeated."""

import hashlib
import json
import sqlite3
from typing import Any

from sandbox.exchange import Answer, Call
from sandbox.form import nested
from sandbox.stripe_errors import StripeError


def fingerprint(call: Call) -> str:
    content: Any = [call.method, call.path, sorted(call.query + call.form)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def keep(db: sqlite3.Connection, key: str, print_: str, answer: Answer) -> None:
    db.execute(
        "INSERT INTO idempotency_keys (key, fingerprint, request_id, status, body) VALUES (?, ?, ?, ?, ?)",
        (key, print_, answer.headers["Request-Id"], answer.status, answer.body),
    )


def replay(db: sqlite3.Connection, key: str, call: Call) -> Answer | None:
    sql = "SELECT fingerprint, request_id, status, body FROM idempotency_keys WHERE key = ?"
    row = db.execute(sql, (key,)).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != fingerprint(call):
        message = (
            f"The idempotency key '{key}' was first used with other parameters. Another request needs another key."
        )
        raise StripeError(400, message, type="idempotency_error")
    content = json.loads(row["body"])
    return Answer(
        row["status"],
        row["body"],
        {"Idempotent-Replayed": "true", "Original-Request": row["request_id"]},
        outcome="replayed",
        object_id=content.get("id") or content.get("error", {}).get("payment_intent", {}).get("id"),
        idempotency_key=key,
        request=nested(call.query + call.form),
    )
