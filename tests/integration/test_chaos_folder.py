"""`make chaos DATABASE=postgres` as root, where PostgreSQL's user may not go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres_cluster import BINARIES
from tests.processes import BARE, ROOT


@pytest.mark.skipif(os.geteuid() != 0 or BINARIES is None, reason="only root starts PostgreSQL as another user")
@pytest.mark.parametrize("closed", ["first", "first/second", "first/second/third"])
def test_folder_that_postgres_may_not_enter_is_named_with_what_to_do(tmp_path: Path, closed: str) -> None:
    (tmp_path / "first/second/third").mkdir(parents=True)
    (tmp_path / closed).chmod(0o700)
    folder = tmp_path / "first/second/third/chaos"
    ended = subprocess.run(
        [sys.executable, "-m", "chaos", "--database", "postgres", "--seconds", "1", "--folder", str(folder)],
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert f"the user postgres must be able to enter {folder}" in ended.stderr
    assert "FOLDER=" in ended.stderr
    assert "Traceback" not in ended.stderr
