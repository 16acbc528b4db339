"""
One JSON line per RPC, request and job, on standard output; the libraries' loggers speak the same way.

No address, number, body or token in any line. That is why of an exception only its class and its frames are told: its
text quotes what it choked on.
"""

import io
import logging
import sys
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from services.chassis import context

# They tell requests and bodies at INFO and DEBUG.
LOQUACIOUS = ("python_http_client", "twilio", "stripe", "aiohttp", "asyncio", "urllib3", "uvicorn", "grpc")


class Unfailing(io.TextIOBase):
    """Drop what cannot be written: a log whose reader is gone, or whose disk is full, stops nobody's work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):  # ValueError: closed already; collecting this flushes it
            self._stream.flush()


def configure(process: str, level: str) -> None:
    """Once, before anything is logged."""
    output = Unfailing(sys.stdout)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_context(process),
        tell_exception,
    ]
    renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", output)),
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in LOQUACIOUS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _add_context(process: str) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        if identity := context.correlation_id.get():
            event["correlation_id"] = identity
        if trace := context.traceparent.get():
            event["trace_id"], event["span_id"] = trace.split("-")[1:3]
        return event

    return add


def tell_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the classes of the exception and its causes, and by where it was raised."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        causes = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
            causes.append(cause)
        event["exception"] = [type(cause).__qualname__ for cause in causes]
        event["frames"] = _frames(causes[0].__traceback__)
    return event


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)][-12:]
