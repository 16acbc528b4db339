"""Each row of ARCHITECTURE.md's failure table is backed by tests that exist, or says openly that nothing shows it."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_row_names_tests_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("| who, how | when |") :].split("\n\n")[0].splitlines()[2:]
    written = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"def (test_\w+)\(", written))

    assert len(table) > 10
    for row in table:
        shown_by = row.split("|")[5]
        assert set(re.findall(r"`(test_\w+)`", shown_by)) <= known, row
        assert "`" in shown_by or shown_by.strip() == "\u2013", row
