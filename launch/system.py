"""A whole system on this machine: five processes under a supervisor that starts a killed one again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path

import grpc

from launch.settings import LISTENERS, PROCESSES, sandboxed, write_private

ROOT = Path(__file__).parent.parent
#: Seconds that the others get when a process has ended while starting, so that all they find wrong is shown together.
OTHERS = 20.0
#: How a process names a wrong setting.
SETTING = re.compile(r"[A-Z][A-Z0-9_]+: ")

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


CERTIFICATES = {f"{name.upper()}_TLS_CERT" for name in PROCESSES}

# What the supervisor says of a process that ended by itself.
EXITED = re.compile(r" exited: (\w+) \(exit status (\d+);")


class StartError(Exception):
    """The system cannot start. `code` is the exit code of the README."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class System:
    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        self.settings = dict(settings)
        self.folder = folder.absolute()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._said: dict[str, int] = {}  #: Name of a log → its size when this system started.

    @property
    def gateway(self) -> str:
        return f"http://{self.settings['GATEWAY_LISTEN']}"

    @property
    def sandbox(self) -> str:
        return f"http://{self.settings['SANDBOX_LISTEN']}"

    def taken(self) -> list[str]:
        """The addresses that somebody else listens on."""
        addresses = [value for name, value in self.settings.items() if name in LISTENERS]
        return [address for address in addresses if answers(address)]

    def start(self) -> None:
        """Start the processes; StartError: another system runs from this folder."""
        for folder in (self.folder, self.folder / "log"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = alone(self.folder / "launch.lock")
        for log in (self.folder / "log").glob("*.log*"):
            log.chmod(0o600)
            self._said[log.stem] = log.stat().st_size
        self._stopping.unlink(missing_ok=True)
        config = self.folder / "supervisor.conf"
        write_private(config, self._config())
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "launch.child", "supervisor.supervisord", "-c", str(config)],
            cwd=ROOT,
            env={**self.settings, "LAUNCH_STOPPING": str(self._stopping)},
            stdout=subprocess.DEVNULL,
            umask=0o077,
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )
        state = {"pid": os.getpid(), "sandboxed": sandboxed(self.settings)}
        settings = {name: value for name, value in self.settings.items() if name in LISTENERS or name in CERTIFICATES}
        write_private(self.folder / "running.json", json.dumps({**state, "settings": settings}))

    @property
    def _stopping(self) -> Path:
        return self.folder / "stopping"

    def _config(self) -> str:
        def escaped(text: object) -> str:
            return str(text).replace("%", "%%")

        where = {"folder": escaped(self.folder), "root": escaped(ROOT)}
        parts = [SUPERVISOR.format(user="user=root" if os.geteuid() == 0 else "", **where)]
        for priority, (name, (module, _, _)) in enumerate(PROCESSES.items()):
            command = shlex.join([sys.executable, "-m", "launch.child", module])
            parts.append(PROGRAM.format(name=name, command=escaped(command), priority=priority, **where))
        return "".join(parts)

    def waiting(self, seconds: float = 60.0, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Name each process as it becomes ready; StartError says why one does not. Ends early when stopped."""
        left = set(PROCESSES)
        until = time.monotonic() + seconds
        while left and not stopped():
            for name in sorted(left):
                if self.is_up(name):
                    left.remove(name)
                    yield name
            ended = self._ended()
            if ended:  # the others get time to say what else is wrong
                until = min(until, time.monotonic() + OTHERS)
            if left and (left <= ended.keys() or time.monotonic() > until):
                raise StartError(self._why(left, ended), 2 if 2 in ended.values() else 1)
            if self._supervisor is not None and self._supervisor.poll() is not None:
                raise StartError(f"the supervisor has ended; see {self.folder}/log")
            time.sleep(0.05)

    def _ended(self) -> dict[str, int]:
        """Return the exit code of each process that has ended by itself since the start."""
        return {name: int(code) for line in self._lines("supervisor") for name, code in EXITED.findall(line)}

    def _why(self, left: Collection[str], ended: Mapping[str, int]) -> str:
        """Tell what the processes that are not ready messages last: of wrong settings each line, else one."""
        messages: dict[str, None] = {}  # in order, and once where several processes share a setting
        for name in sorted(ended or left):
            lines = [line for line in map(words, self._lines(name)) if line] or ["it messages nothing"]
            wrong = [line for line in lines if SETTING.match(line)] if ended.get(name) == 2 else []
            messages |= dict.fromkeys(wrong or [f"{name}: {lines[-1]}"])
        what = f"ended: {', '.join(sorted(ended))}" if ended else f"not ready: {', '.join(sorted(left))}"
        return "\n".join([*messages, f"{what}; see {self.folder}/log"])

    def _lines(self, name: str) -> list[str]:
        """Return what a process has logged since the start."""
        try:
            with (self.folder / "log" / f"{name}.log").open(errors="replace") as log:
                log.seek(self._said.get(name, 0))
                return log.read().splitlines()
        except OSError:
            return []

    def readiness(self, name: str) -> str:
        if name == "sandbox":
            return f"{self.sandbox}/healthz"
        scheme = "https" if self._certificate(name) else "http"
        return f"{scheme}://{self.settings[f'{name.upper()}_OPERATIONS_LISTEN']}/readyz"

    def is_up(self, name: str) -> bool:
        return ready(self.readiness(name), self._certificate(name))

    def _certificate(self, name: str) -> str | None:
        return self.settings.get(f"{name.upper()}_TLS_CERT")

    def channel(self, name: str) -> grpc.aio.Channel:
        """Make a channel to a service as the clinic's software does: over TLS where CLINIC_CA is set."""
        address = self.settings[f"{name.upper()}_LISTEN"]
        files = [self.settings.get(f"CLINIC_{what}") for what in ("CA", "KEY", "CERT")]
        if files[0] is None:
            return grpc.aio.insecure_channel(address)
        credentials = grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))
        return grpc.aio.secure_channel(address, credentials)

    def wait(self, stopped: Callable[[], bool]) -> int:
        """Return 0 when stopped, 1 when the supervisor has ended by itself."""
        assert self._supervisor is not None  # noqa: S101 - started
        while not stopped():
            if self._supervisor.poll() is not None:
                return 1
            time.sleep(0.1)
        return 0

    def stop(self) -> None:
        """Drain and end everything; a second call does nothing, and so does one for what was not started."""
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._stopping.touch()
            self._supervisor.send_signal(signal.SIGTERM)
            self._supervisor.wait()
        if self._lock is not None:
            (self.folder / "running.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def alone(file: Path) -> int:
    """Lock the file until this process ends, however it ends. StartError: another one has it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartError(f"another system runs from {file.parent}: stop it first, or name another folder") from None
    return lock


def words(line: str) -> str:
    """Return what a line of a log says: of JSON the event and the reason."""
    try:
        fields = json.loads(line)
        return ": ".join(str(fields[name]) for name in ("event", "reason", "exception") if fields.get(name))
    except (ValueError, AttributeError, KeyError):
        return line.strip()


def answers(address: str) -> bool:
    """Tell whether somebody listens there; the process itself says what is wrong with an address that is none."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        try:
            return probe.connect_ex((host.strip("[]"), int(port))) == 0
        except (OSError, ValueError, OverflowError):
            return False


def ready(url: str, certificate: str | None = None) -> bool:
    """Return whether a process is ready. Over TLS, accept exactly its certificate, whatever names it has."""
    context = None
    if certificate:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:  # noqa: S310 - ours
            return bool(answer.status == 200)
    except (OSError, ValueError, HTTPException):
        return False


def running(folder: Path) -> System | None:
    """The system that `make run` keeps up from this folder; None where there is none, or its providers are real."""
    try:
        state = json.loads((folder / "running.json").read_text())
        os.kill(state["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    system = System(state["settings"], folder)
    return system if state["sandboxed"] and system.is_up("gateway") else None
