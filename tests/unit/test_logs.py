from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress

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


def test_a_line_is_one_json_object_that_joins_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("sms", "INFO")
    with context.restored(f"story-1 00-{'a' * 32}-{'b' * 16}-01"):
        structlog.get_logger().info("job", queue="sms", outcome="done")

    line = json.loads(capsys.readouterr().out)
    assert {"event": "job", "process": "sms", "level": "info", "queue": "sms", "correlation_id": "story-1"}.items() <= (
        line.items()
    )
    assert line["trace_id"] == "a" * 32


def test_the_libraries_speak_the_same_way_and_the_loquacious_are_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("email", "DEBUG")
    logging.getLogger("python_http_client").info("POST body: ana@example.com")
    logging.getLogger("twilio.http_client").info("To: +5511912345678")
    logging.getLogger("somebody").warning("hello %s", "there")

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "hello there"
    assert json.loads(line)["logger"] == "somebody"


def test_of_an_exception_the_classes_and_frames_are_told_but_never_the_text(
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

    told = capsys.readouterr().out
    first, second = map(json.loads, told.splitlines())
    assert first["exception"] == second["exception"] == ["KeyError", "ValueError"]
    assert "test_logs.py" in first["frames"][-1]
    assert "ana@example.com" not in told
    assert "91234" not in told


def test_a_log_that_nobody_reads_any_more_stops_nobodys_work() -> None:
    """The supervisor that read it was killed: the pipe is broken."""
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
