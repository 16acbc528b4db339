"""A whole system on this machine: five processes under a supervisor that starts a killed one again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from launch.settings import PROCESSES, sandboxed

ROOT = Path(__file__).parent.parent

SUPERVISOR = """\
[supervisord]
nodaemon=true
silent=true
logfile={folder}/log/supervisor.log
pidfile={folder}/supervisor.pid
{user}
"""

# A process that cannot start is tried again for ever: what it waits for may come. Priorities order the stop: the
# gateway first, so that nothing calls a service that has gone.
PROGRAM = """
[program:{name}]
command={command}
directory={root}
priority={priority}
autorestart=true
startsecs=1
startretries=1000000
stopsignal=TERM
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={folder}/log/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


class System:
    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        self.settings = dict(settings)
        self.folder = folder.absolute()
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def gateway(self) -> str:
        return f"http://{self.settings['GATEWAY_LISTEN']}"

    @property
    def sandbox(self) -> str:
        return f"http://{self.settings['SANDBOX_LISTEN']}"

    def taken(self) -> list[str]:
        """The addresses that somebody else listens on."""
        addresses = [value for name, value in self.settings.items() if name in listeners()]
        return [address for address in addresses if answers(address)]

    def start(self) -> None:
        (self.folder / "log").mkdir(parents=True, exist_ok=True)
        config = self.folder / "supervisor.conf"
        config.write_text(self._config())
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "launch.child", "supervisor.supervisord", "-c", str(config)],
            cwd=ROOT,
            env=self.settings,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )
        state = {"pid": os.getpid(), "sandboxed": sandboxed(self.settings)}
        addresses = {name: value for name, value in self.settings.items() if name in listeners()}
        (self.folder / "running.json").write_text(json.dumps({**state, "settings": addresses}))

    def _config(self) -> str:
        def escaped(text: object) -> str:
            return str(text).replace("%", "%%")

        where = {"folder": escaped(self.folder), "root": escaped(ROOT)}
        parts = [SUPERVISOR.format(user="user=root" if os.geteuid() == 0 else "", **where)]
        for priority, (name, (module, _, _)) in enumerate(PROCESSES.items()):
            command = shlex.join([sys.executable, "-m", "launch.child", module])
            parts.append(PROGRAM.format(name=name, command=escaped(command), priority=priority, **where))
        return "".join(parts)

    def waiting(self, seconds: float = 60.0) -> Iterator[str]:
        """Name each process as it becomes ready; raises TimeoutError naming those that do not."""
        left = set(PROCESSES)
        until = time.monotonic() + seconds
        while left:
            for name in sorted(left):
                if ready(self.readiness(name)):
                    left.remove(name)
                    yield name
            if self._supervisor is not None and self._supervisor.poll() is not None:
                raise TimeoutError("the supervisor has ended")
            if time.monotonic() > until:
                raise TimeoutError(f"not ready: {', '.join(sorted(left))}")
            time.sleep(0.05)

    def readiness(self, name: str) -> str:
        if name == "sandbox":
            return f"{self.sandbox}/healthz"
        return f"http://{self.settings[f'{name.upper()}_OPERATIONS_LISTEN']}/readyz"

    def wait(self) -> int:
        assert self._supervisor is not None  # noqa: S101 - started
        return self._supervisor.wait()

    def stop(self) -> None:
        """Drain and end everything; a second call does nothing."""
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)
            self._supervisor.wait()
        (self.folder / "running.json").unlink(missing_ok=True)


def listeners() -> set[str]:
    own = {f"{name.upper()}_LISTEN" for name in PROCESSES}
    return own | {f"{name.upper()}_OPERATIONS_LISTEN" for name, (_, _, port) in PROCESSES.items() if port}


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host.strip("[]"), int(port))) == 0


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http://, ours
            return bool(answer.status == 200)
    except OSError:
        return False


def running(folder: Path) -> System | None:
    """The system that `make run` keeps up from this folder; None where there is none, or its providers are real."""
    try:
        state = json.loads((folder / "running.json").read_text())
        os.kill(state["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    system = System(state["settings"], folder)
    return system if state["sandboxed"] and ready(system.readiness("gateway")) else None
