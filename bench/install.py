"""The peers, pinned, each in a folder of its own below var/tools/bench; installed when first asked for."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.running import ROOT

TOOLS = ROOT / "var/tools/bench"
PEERS = Path(__file__).parent / "peers"
QUEUES = ("procrastinate==3.10.0", "pgqueuer[asyncpg]==1.6.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")
OBAN = ("oban==0.7.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")


def express() -> Path:
    folder = TOOLS / "express"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (PEERS / "express/package.json").read_bytes()
    if not (folder / "ready").exists() or (folder / "ready").read_bytes() != wanted:
        shutil.copy(PEERS / "express/package.json", folder)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
        (folder / "ready").write_bytes(wanted)
    shutil.copy(PEERS / "express/server.mjs", folder)
    return folder


def queues() -> str:
    """The Python that procrastinate and pgqueuer are installed for: the same version as ours."""
    return _python("queues", sys.executable, QUEUES)


def oban() -> str | None:
    """A Python that oban takes, 3.12 or newer; None where the machine has none."""
    newer = newer_python()
    return _python("oban", newer, OBAN) if newer else None


def newer_python() -> str | None:
    named = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    built = sorted(str(path) for path in Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python"))
    for candidate in [sys.executable, *filter(None, named), *built]:
        test = "import sys; sys.exit(sys.version_info < (3, 12))"
        if subprocess.run([candidate, "-c", test], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return candidate
    return None


def _python(name: str, interpreter: str, wanted: tuple[str, ...]) -> str:
    folder, ready = TOOLS / name, TOOLS / name / "ready"
    if not ready.exists() or ready.read_text() != repr(wanted):
        if interpreter == sys.executable:
            venv.create(folder, clear=True, with_pip=True)
        else:
            subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
        command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *wanted], check=True)
        ready.write_text(repr(wanted))
    return str(folder / "bin/python")
