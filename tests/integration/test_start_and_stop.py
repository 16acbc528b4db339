"""A process that receives SIGTERM while it starts exits at once with code 0."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from launch.settings import complete
from services.chassis.database.migrations import BOOTSTRAP
from tests.postgres_cluster import Cluster
from tests.processes import BARE, ROOT

MODULES = {"services.payments": "PAYMENTS", "services.email": "EMAIL", "services.sms": "SMS", "gateway": "GATEWAY"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def starting(module: str, database_url: str = "", prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        settings = complete({}, tmp_path, free_ports=True)
        if database_url:
            settings[f"{MODULES[module]}_DATABASE_URL"] = database_url
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-m", module],
            cwd=ROOT,
            env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield starting
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], within: float = 8.0) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still there:\n{process.communicate()[0]}") from None
    return process.returncode, output


def handles_sigterm(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def until(look: Callable[[], object], within: float = 20.0) -> None:
    end = time.monotonic() + within
    while not look():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", MODULES)
def test_process_waiting_for_a_refusing_database_stops_at_once(
    start: Callable[..., subprocess.Popen[str]], module: str, number: int
) -> None:
    process = start(module, "postgresql://postgres@127.0.0.1:1/none")
    assert process.stdout is not None
    assert "database.connect_failed" in process.stdout.readline()
    process.send_signal(number)

    code, output = ended(process, within=4.0)
    assert code == 0, output
    assert '"event":"stopped"' in output
    assert "Traceback" not in output


@pytest.mark.parametrize("hosts", [1, 3])
def test_process_waiting_for_a_silent_database_stops_at_once(
    start: Callable[..., subprocess.Popen[str]], hosts: int
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = "{}:{}".format(*silent.getsockname())
        process = start("services.sms", f"postgresql://postgres@{','.join([address] * hosts)}/none")
        silent.accept()[0].close()
        held = silent.accept()[0]
        process.send_signal(signal.SIGTERM)

        code, output = ended(process, within=4.0)
        held.close()
        assert code == 0, output


@pytest.mark.parametrize("module", MODULES)
async def test_process_waiting_for_its_migrations_stops(
    start: Callable[..., subprocess.Popen[str]], postgres: Cluster, module: str
) -> None:
    url = postgres.database()
    other, watching = await asyncpg.connect(url), await asyncpg.connect(url)
    for statement in BOOTSTRAP:
        await other.execute(statement)
    async with other.transaction():
        await other.execute("SELECT id FROM schema_lock WHERE id = 1 FOR UPDATE")
        process = start(module, url)
        async with asyncio.timeout(20):
            waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
            while not await watching.fetchval(waiting, url.rpartition("/")[2]):  # noqa: ASYNC110 - another process waits
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code, output = await asyncio.to_thread(ended, process)
    assert code == 0, output
    assert await other.fetchval("SELECT COUNT(*) FROM migration") == 0
    await other.close()
    await watching.close()


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/unshare").exists(), reason="only root makes a namespace")
@pytest.mark.parametrize("module", MODULES)
def test_process_with_pid_1_stops_during_its_imports(start: Callable[..., subprocess.Popen[str]], module: str) -> None:
    """The kernel drops a signal that PID 1 does not handle."""
    process = start(module, "", ("/usr/bin/unshare", "--pid", "--fork", "--kill-child"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: children.read_text().split())
    [inner] = map(int, children.read_text().split())
    until(lambda: handles_sigterm(inner))
    assert not Path(f"/proc/{inner}/maps").read_text().count("uvloop")  # it is far from listening
    os.kill(inner, signal.SIGTERM)

    code, output = ended(process, within=4.0)
    assert code == 0
    assert output == ""
