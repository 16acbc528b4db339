"""`make run` as a person has it: up, kept up, and gone when it is ended, however it is ended."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.settings import LISTENERS, PROCESSES, complete, listen, merged, sandboxed
from tests.processes import BARE, ROOT


class Run:
    def __init__(self, folder: Path) -> None:
        self.addresses = {name: listen(0, free=True) for name in sorted(LISTENERS)}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", str(folder)],
            cwd=ROOT,
            env={**BARE, **self.addresses},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.rstrip())
            if line == "ready\n":
                break

    def pids(self) -> dict[str, int]:
        """Which process runs which module now."""
        found: dict[str, int] = {}
        for folder in Path("/proc").iterdir():
            try:
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                place = (folder / "environ").read_bytes().decode(errors="replace")
            except (OSError, ValueError):
                continue
            if "launch.child" in command and f"GATEWAY_LISTEN={self.addresses['GATEWAY_LISTEN']}" in place:
                found[command[command.index("launch.child") + 1]] = int(folder.name)
        return found

    def status(self) -> int:
        with urllib.request.urlopen(f"http://{self.addresses['GATEWAY_LISTEN']}/v1/status", timeout=5) as answer:
            return int(answer.status)


def within(seconds: float, look: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("this test finds processes by /proc")
    started = Run(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    assert started.process.stdout is not None
    started.process.stdout.close()
    within(20, lambda: not started.pids())


def test_a_killed_process_is_started_again_and_ctrl_c_drains_all(run: Run) -> None:
    assert run.printed[-1] == "ready"
    assert any(f"http://{run.addresses['SANDBOX_LISTEN']}/" in line for line in run.printed)
    assert "Three things to try:" in run.printed
    assert run.status() == 200
    assert set(run.pids()) == {module for module, _, _ in PROCESSES.values()} | {"supervisor.supervisord"}

    before = run.pids()["services.payments"]
    os.kill(before, signal.SIGKILL)
    within(20, lambda: run.pids().get("services.payments", before) != before)

    second = subprocess.run(
        [sys.executable, "-m", "launch", str(run.folder)],
        cwd=ROOT,
        env={**BARE, **run.addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "already in use" in second.stderr

    # Beside it, on the same folder: nothing of the first one's is touched.
    noted = (run.folder / "running.json").read_text()
    elsewhere = launched(run.folder)
    assert elsewhere.returncode == 1
    assert f"another system runs from {run.folder}" in elsewhere.stderr
    assert (run.folder / "running.json").read_text() == noted
    assert run.status() == 200

    readable = [path for path in run.folder.rglob("*") if path.stat().st_mode & 0o077]
    assert readable == []

    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0
    assert run.pids() == {}


@pytest.mark.parametrize("killed", ["launcher", "supervisor"])
def test_children_end_with_whoever_holds_them_even_when_it_is_killed(run: Run, killed: str) -> None:
    os.kill(run.process.pid if killed == "launcher" else run.pids()["supervisor.supervisord"], signal.SIGKILL)

    within(25, lambda: run.pids() == {})


def launched(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start a system that is expected not to come up."""
    addresses = {name: listen(0, free=True) for name in sorted(LISTENERS)}
    return subprocess.run(
        [sys.executable, "-m", "launch", str(folder)],
        cwd=ROOT,
        env={**BARE, **addresses, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"SMS_PEPPER": "short"},
        {"STRIPE_PER_SECOND": "many", "SENDGRID_PER_SECOND": "-1", "TWILIO_PER_SECOND": "inf"},
        {"PAYMENTS_LISTEN": "nowhere", "SANDBOX_LISTEN": "127.0.0.1:99999", "GATEWAY_OPERATIONS_LISTEN": "8081"},
        {"SANDBOX_WEBHOOK_TARGET": "gateway:8080", "SANDBOX_SENDGRID_PRIVATE_KEY": "no key", "LOG_LEVEL": "LOUD"},
        {"EMAIL_AUTH_TOKENS": "no token", "SMS_AUTH_TOKENS": "a:all:b", "GATEWAY_TLS_CERT_FILE": "/none"},
        {"SANDBOX_SENDGRID_PRIVATE_KEY": "AAAA", "EMAIL_CALLER_LIMIT": "often", "SMS_REGIONS": "XX"},
    ],
)
def test_wrong_settings_of_all_processes_are_shown_in_one_round(tmp_path: Path, settings: dict[str, str]) -> None:
    ended = launched(tmp_path, **settings)

    assert ended.returncode == 2, ended.stderr
    for name in settings:
        shown = re.findall(f"^{name.removesuffix('_FILE')}: ", ended.stderr, re.MULTILINE)
        assert len(shown) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"PAYMENTS_DATABASE_URL": "sqlite:////proc/none/payments.db"}, "payments: .*cannot open the database"),
        ({"SANDBOX_DATABASE": "/proc/none/sandbox.db"}, "sandbox: cannot open /proc/none/sandbox.db"),
        ({"GATEWAY_OPERATIONS_LISTEN": "192.0.2.1:8081"}, "gateway: .*cannot listen on 192.0.2.1:8081"),
    ],
)
def test_process_that_cannot_start_is_shown_with_its_last_line(
    tmp_path: Path, settings: dict[str, str], why: str
) -> None:
    ended = launched(tmp_path, **settings)

    assert ended.returncode == 1, ended.stderr
    assert re.search(f"^{why}", ended.stderr, re.MULTILINE), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("folder", ["/proc/none", "/dev/null", "/dev/null/below"])
def test_folder_that_cannot_be_used_is_named_without_a_traceback(folder: str) -> None:
    ended = launched(Path(folder))

    assert ended.returncode == 1
    assert folder in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, 0.15), (signal.SIGINT, 0.7), (signal.SIGTERM, 1.0), (signal.SIGINT, 1.5)]
)
def test_signal_while_the_system_starts_ends_it_at_once(tmp_path: Path, number: int, after: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", str(tmp_path)],
        cwd=ROOT,
        env={**BARE, **{name: listen(0, free=True) for name in sorted(LISTENERS)}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(after)
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=12)
    finally:
        process.kill()

    assert process.returncode in {128 + number, -number}  # -number: Python itself was still starting
    assert "ready" not in output.splitlines()
    assert not (tmp_path / "running.json").exists()


def test_secrets_that_are_made_up_are_kept_and_nobody_elses_to_read(tmp_path: Path) -> None:
    first, second = complete({}, tmp_path), complete({}, tmp_path)

    assert first == second
    assert (tmp_path / "secrets.env").stat().st_mode & 0o777 == 0o600
    assert sandboxed(first)


def test_a_real_key_without_an_address_means_the_real_provider(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STRIPE_SECRET_KEY=sk_test_real\nFROM_EMAIL=a@example.com\n")
    settings = complete(merged({"FROM_EMAIL": "b@example.com"}, tmp_path / ".env"), tmp_path)

    assert "STRIPE_API_BASE" not in settings
    assert settings["STRIPE_SECRET_KEY"] == "sk_test_real"
    assert settings["FROM_EMAIL"] == "b@example.com"
    assert settings["SENDGRID_API_BASE"] == f"http://{settings['SANDBOX_LISTEN']}"
    assert not sandboxed(settings)


def test_the_demo_plays_its_story_and_never_with_real_keys(tmp_path: Path) -> None:
    real = {"STRIPE_SECRET_KEY": "sk_live_never", "SENDGRID_API_KEY": "SG.never", "TWILIO_ACCOUNT_SID": "ACnever"}
    played = subprocess.run(
        [sys.executable, "-m", "launch.demo"],
        cwd=ROOT,
        env={**BARE, **real},
        capture_output=True,
        text=True,
        check=False,
    )

    assert played.stdout.splitlines()[-1] == "demo ok: payment SUCCEEDED, email DELIVERED, sms DELIVERED", played.stdout
    assert re.search(r"payment pay_\w+ is AWAITING_METHOD", played.stdout)
    logs = "".join(file.read_text() for file in (ROOT / "var" / "demo" / "log").glob("*.log"))
    for word in ("ana+", "+55119", "whsec_", *real.values()):
        assert word not in logs
