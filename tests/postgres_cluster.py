"""A PostgreSQL of the tests' own: a cluster in a temporary folder, on a free port of loopback, gone with the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
#: Where there is none, the tests on PostgreSQL skip; with CI set they fail instead.
BINARIES = next((folder for folder in DEBIAN if (folder / "initdb").exists()), None) or (
    Path(found).parent if (found := shutil.which("initdb")) else None
)


class Cluster:
    """A running server. `fsync` off is enough where only processes are killed, never the machine."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        assert BINARIES is not None
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._fsync = "on" if fsync else "off"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if self._user:
            shutil.chown(folder, self._user)
        command = ["initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        self._call(*command, *([] if fsync else ["--no-sync"]))
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        assert BINARIES is not None
        subprocess.run(
            [BINARIES / program, *arguments], user=self._user, cwd=self._folder, check=True, stdout=subprocess.DEVNULL
        )

    def start(self) -> None:
        assert BINARIES is not None
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": self._fsync}
        self._server = subprocess.Popen(
            [str(BINARIES / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port)]
            + [f"--{name}={value}" for name, value in options.items()],
            user=self._user,
            cwd=self._folder,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                self.psql("SELECT 1")
            except subprocess.CalledProcessError:
                assert self._server.poll() is None, "PostgreSQL does not start"
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it as kill -9 does. Its children notice, and the port is free when this returns."""
        self._server.kill()
        self._server.wait()

    def stop(self) -> None:
        self._server.terminate()  # smart shutdown would wait for pools; SIGINT is fast shutdown
        self._server.send_signal(2)
        self._server.wait(20)

    def psql(self, sql: str) -> None:
        assert BINARIES is not None
        subprocess.run(
            [BINARIES / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-qc", sql],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def database(self) -> str:
        """Make an empty database; returns its URL."""
        name = f"t{uuid4().hex}"
        self.psql(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextmanager
def cluster(*, fsync: bool = False) -> Iterator[Cluster]:
    folder = Path(mkdtemp(prefix="topsmile-postgres-"))
    server = Cluster(folder, fsync=fsync)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
