"""Real processes for tests: started as a user starts them, on free ports, killed as the machine may kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

ROOT = Path(__file__).parent.parent
#: Nothing of the caller's settings reaches a test's process.
BARE = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


class Process:
    """`python -m module` with only these settings; `listening` is the JSON line it printed when it was up."""

    def __init__(self, module: str, settings: Mapping[str, str], *, wait: float = 60.0) -> None:
        self.module = module
        self.settings = dict(settings)
        self.lines: list[str] = []
        self._events: Queue[dict[str, Any]] = Queue()
        self._running = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", module],
            cwd=ROOT,
            env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "PYTHONUNBUFFERED": "1", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._running.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.listening = self.event("listening", wait)

    def _read(self) -> None:
        assert self._running.stdout is not None
        for line in self._running.stdout:
            self.lines.append(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._events.put(event)
        self._running.stdout.close()
        self._events.put({"event": "ended"})

    def event(self, name: str, wait: float = 20.0) -> dict[str, Any]:
        """The next line of the log whose event is, or ends in, this name."""
        while True:
            try:
                event = self._events.get(timeout=wait)
            except Empty:
                raise AssertionError(f"{self.module} never said {name}:\n{''.join(self.lines)}") from None
            if event.get("event", "").split(".")[-1] == name:
                return event
            assert event.get("event") != "ended", f"{self.module} ended early:\n{''.join(self.lines)}"

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.end(signal.SIGKILL)

    def freeze(self) -> None:
        self._running.send_signal(signal.SIGSTOP)

    def stopped(self) -> bool:
        """Tell whether it is frozen, by whomever."""
        return os.waitid(os.P_PID, self._running.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def thaw(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM, wait: float = 20.0) -> int:
        if self._running.poll() is None:
            self._running.send_signal(number)
        code = self._running.wait(wait)
        self._reader.join(wait)
        return code


@contextmanager
def process(module: str, settings: Mapping[str, str]) -> Iterator[Process]:
    running = Process(module, settings)
    try:
        yield running
    finally:
        running.kill()


class Sandbox(Process):
    """The providers' double. Its settings name the secrets it signs with."""

    @property
    def url(self) -> str:
        return str(self.listening["url"])


@contextmanager
def sandbox(folder: Path, **settings: str) -> Iterator[Sandbox]:
    running = Sandbox(
        "sandbox",
        {"SANDBOX_LISTEN": "127.0.0.1:0", "SANDBOX_DATABASE": f"{folder}/sandbox.db", **settings},
    )
    try:
        yield running
    finally:
        running.kill()
