"""Each statement that runs for one message uses an index."""

import sqlite3
from pathlib import Path

import pytest

from services.messaging import store

SCHEMAS = (Path("services/chassis/database/schema"), Path("services/messaging/schema"))
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "statement",
    [
        store.TAKEN,
        store.BY_PROVIDER_ID,
        store.OF_APPOINTMENT,
        store.PURGE,
        store.PURGE_EVENTS,
        store.PURGE_APPOINTMENTS,
        store.BY_KEY,
    ],
)
def test_statement_for_one_message_uses_an_index(statement: str) -> None:
    database = sqlite3.connect(":memory:")
    database.create_function("now_ms", 0, lambda: 0)
    for folder in SCHEMAS:
        for script in sorted((ROOT / folder).glob("*.sql")):
            database.executescript(script.read_text())
    given = {
        "provider": "twilio", "provider_message_id": "SM1", "message_id": "sms_1", "number": 1, "appointment_id": "a1",
        "caller": "clinic", "key": "k", "queue": "sms", "age": 1, "max_rows": 10,
    }  # fmt: skip
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", given)]
    database.close()

    assert plan
    assert not [
        line
        for line in plan
        if line.startswith(("SCAN message", "SCAN appointment", "SCAN provider_event", "SCAN job"))
    ]
