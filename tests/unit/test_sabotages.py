"""A sabotage that does not fit the code any more would break nothing and prove nothing."""

import pytest

from chaos.sabotage import SABOTAGES
from launch.system import ROOT


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_changes_code_that_stands_once(name: str) -> None:
    sabotage = SABOTAGES[name]
    text = (ROOT / sabotage.file).read_text()

    for old, new in sabotage.changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    compile(text, sabotage.file, "exec")
