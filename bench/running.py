"""Processes under measurement: started, awaited, their CPU time and memory read from /proc, ended by their pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
#: Nothing of the caller's settings reaches what is measured.
BARE = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


class Running:
    """One process, up: it has written its JSON line whose event is `listening`, or ends in it."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, str], log: Path, wait: float = 30.0) -> None:
        started = time.monotonic()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "PYTHONUNBUFFERED": "1", **settings},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid
        self.addresses = self._listening(log, started + wait)
        self.start_seconds = time.monotonic() - started

    def _listening(self, log: Path, deadline: float) -> dict[str, Any]:
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in log.read_text().splitlines():
                if "listening" in line and line.startswith("{"):
                    addresses: dict[str, Any] = json.loads(line)
                    return addresses
            time.sleep(0.005)
        self.end()
        raise SystemExit(f"{self._process.args!r} did not start:\n{log.read_text()[-2000:]}")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


@contextmanager
def running(command: Sequence[str], log: Path, **settings: str) -> Iterator[Running]:
    process = Running(command, settings, log)
    try:
        yield process
    finally:
        process.end()


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def cpu_seconds(*roots: int) -> float:
    """Seconds that these processes and all their descendants have used, those that have ended included."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(folder.name)
            children.setdefault(int(fields[1]), []).append(pid)
            used[pid] = sum(map(int, fields[11:15]))  # its own and its reaped children's, user and system
    total, family = 0, list(roots)
    while family:
        pid = family.pop()
        total += used.get(pid, 0)
        family += children.get(pid, [])
    return total / TICKS


def memory_mib(pid: int) -> float:
    """Proportional set size: what is shared with other processes counts in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def load(name: str, *arguments: object) -> dict[str, float]:
    """Run a load generator, in a process of its own, to its end."""
    return seen_by(module(f"bench.loads.{name}", *map(str, arguments)))


def seen_by(command: Sequence[str], wait: float = 300) -> dict[str, float]:
    """Run a command to its end; the last line it prints is what it saw, as JSON."""
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=wait,
    )
    seen: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return seen
