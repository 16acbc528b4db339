"""No statement that runs for each text reads all texts."""

import sqlite3
from pathlib import Path

import pytest

from services.sms import store

SCHEMAS = (Path("services/chassis/schema"), Path("services/sms/migrations"))
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("statement", [store.LEARN, store.KNOWN, store.OF_APPOINTMENT])
def test_a_text_is_found_by_an_index(statement: str) -> None:
    database = sqlite3.connect(":memory:")
    database.create_function("now_ms", 0, lambda: 0)
    for folder in SCHEMAS:
        for script in sorted((ROOT / folder).glob("*.sql")):
            database.executescript(script.read_text())
    given = {"sid": "SM1", "sms_id": "sms_1", "appointment_id": "a1"}
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", given)]
    database.close()

    assert plan
    assert not [line for line in plan if line.startswith("SCAN sms")]
