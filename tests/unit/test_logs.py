from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

import pytest
import structlog

from services.chassis import context, logs


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_log_line_is_one_json_object_with_the_correlation_id(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("sms", "INFO")
    with context.restored(f"request-1 00-{'a' * 32}-{'b' * 16}-01"):
        structlog.get_logger().info("job", queue="sms", outcome="done")

    line = json.loads(capsys.readouterr().out)
    assert {
        "event": "job",
        "process": "sms",
        "level": "info",
        "queue": "sms",
        "correlation_id": "request-1",
    }.items() <= (line.items())
    assert line["trace_id"] == "a" * 32
    assert "span_id" not in line


@pytest.mark.parametrize(
    ("offered", "parent", "correlation_id", "trace_id"),
    [
        ("", "", None, None),
        ("", f"00-{'c' * 32}-{'d' * 16}-00", "c" * 32, None),
        ("appointment 7", f"00-{'c' * 32}-{'d' * 16}-00", "c" * 32, None),
        ("appointment-7", f"00-{'c' * 32}-{'d' * 16}-00", "appointment-7", "c" * 32),
    ],
)
def test_log_line_has_the_trace_only_where_it_differs_from_the_correlation_id(
    capsys: pytest.CaptureFixture[str], offered: str, parent: str, correlation_id: str | None, trace_id: str | None
) -> None:
    logs.configure("sms", "INFO")
    chosen = context.adopt(offered, parent)
    context.note(sms_id="sms_1", status=None)
    structlog.get_logger().info("rpc", code="OK", caller="local", reason=None)

    line = json.loads(capsys.readouterr().out)
    assert line["correlation_id"] == chosen == (correlation_id or chosen)
    assert line.get("trace_id") == trace_id
    assert set(line) - {"trace_id"} == {
        "event", "code", "level", "timestamp", "process", "correlation_id", "sms_id",
    }  # fmt: skip


def test_library_logs_have_the_same_form_and_noisy_ones_are_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("email", "DEBUG")
    logging.getLogger("python_http_client").info("POST body: ana@example.com")
    logging.getLogger("twilio.http_client").info("To: +5511912345678")
    logging.getLogger("somebody").warning("hello %s", "there")

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "hello there"
    assert json.loads(line)["logger"] == "somebody"


def test_exception_is_logged_by_classes_and_frames_without_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("sms", "INFO")
    try:
        try:
            int("+55 11 91234-5678")
        except ValueError as error:
            raise KeyError("ana@example.com") from error
    except KeyError as error:
        structlog.get_logger().error("rpc", exc_info=error)
        logging.getLogger("somebody").exception("again")

    output = capsys.readouterr().out
    first, second = map(json.loads, output.splitlines())
    assert first["exception"] == second["exception"] == ["KeyError", "ValueError"]
    assert "test_logs.py" in first["frames"][-1]
    assert "ana@example.com" not in output
    assert "91234" not in output


def test_closed_log_pipe_does_not_stop_the_process() -> None:
    """The pipe is broken when the supervisor that reads it is killed."""
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w", buffering=1)
    output = logs.Unfailing(broken)

    assert output.write("a line\n") == 7
    output.flush()
    with pytest.raises(BrokenPipeError):
        broken.write("a line\n")
    with suppress(BrokenPipeError):
        broken.close()


@pytest.fixture
def file_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk with a number of bytes left, which takes a part of the last write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limited(size: int) -> Path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        return tmp_path / "process.log"

    yield limited
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("left", [1, 150, 999, 1_024])
def test_log_line_on_a_full_disk_is_whole_or_absent(file_of: Callable[[int], Path], left: int, mode: str) -> None:
    line = json.dumps({"event": "job", "of": "x" * 80}) + "\n"
    path = file_of(left)
    with path.open(mode) as file:
        output = logs.Unfailing(cast("TextIO", file))
        for _ in range(20):
            output.write(line)
        assert path.read_text() == line * (left // len(line))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        output.write(line)  # there is room again

    assert path.read_text() == line * (left // len(line) + 1)


@pytest.mark.parametrize(
    "failure",
    [
        "raise ValueError('ana@example.com')",
        "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
        "from services.chassis import lifecycle; lifecycle.run(lambda _: open('/nowhere/ana@example.com'), settings)",
    ],
)
def test_uncaught_exception_is_one_json_line_without_its_text(failure: str) -> None:
    setup = "from services.chassis import logs; from types import SimpleNamespace; logs.configure('sms', 'INFO');"
    setup += "settings = SimpleNamespace(process='SMS', log_level='INFO');"
    ended = subprocess.run([sys.executable, "-c", f"{setup}{failure}"], capture_output=True, text=True, check=False)

    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert json.loads(line)["level"] == "critical"
    assert json.loads(line)["exception"][0] in {"ValueError", "ZeroDivisionError", "FileNotFoundError"}
    assert "ana@example.com" not in line
