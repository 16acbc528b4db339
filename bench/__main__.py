"""
Our figures beside those of others: python -m bench [--part NAME] [--rounds N] [--seconds N] [--report FILE]

CPU is that of whole process trees, the database's included where PostgreSQL is used; load generators do not count.
"""

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.parts import footprint, lateness, overload, payments, queue, sms, webhooks
from bench.rounds import Part
from bench.running import ROOT
from bench.scene import Scene
from tests.postgres_cluster import BINARIES

PARTS: dict[str, Callable[[Scene], Part | overload.Overload]] = {
    "webhooks": webhooks.part,
    "sms": sms.part,
    "payments": payments.part,
    "queue": queue.part,
    "lateness": lateness.part,
    "footprint": footprint.part,
    "overload": overload.part,
}
#: A part that takes four minutes alone, so it runs only where it is named.
BY_NAME_ONLY = {"overload"}
LIBRARIES = ("grpcio", "uvicorn", "uvloop", "aiohttp", "asyncpg", "stripe", "twilio")


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{len(models)} x {models[0] if models else platform.machine()}, {memory} MiB, {platform.release()}",
        "Python": platform.python_version(),
        "PostgreSQL": output_of(str(BINARIES / "postgres"), "--version").split()[2] if BINARIES else "none",
        "Node": output_of("node", "--version"),
        **{name: version(name) for name in LIBRARIES},
    }


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the overload lasts")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    reports = {}
    folder = ROOT / "var/bench"  # on a disk, where a commit costs what it costs
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.part or [name for name in PARTS if name not in BY_NAME_ONLY]:
        with TemporaryDirectory(dir=folder, prefix=f"{name}-") as place, Scene(Path(place), options.seconds) as scene:
            part = PARTS[name](scene)
            part.run(options.rounds)
        print(f"\n{part.table()}", flush=True)
        reports[name] = part.report()
        if options.report:
            options.report.write_text(json.dumps({"about": about, "parts": reports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
