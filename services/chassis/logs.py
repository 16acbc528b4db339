"""
One JSON line per RPC, request and job on standard output. The loggers of libraries write the same form.

No line holds an address, number, body or token. Exceptions are logged by class and frames only, because their texts
quote the values.
"""

import io
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from structlog.typing import EventDict, Processor

from services.chassis import context

# These log requests and bodies at INFO and DEBUG.
NOISY_LOGGERS = ("python_http_client", "twilio", "stripe", "aiohttp", "asyncio", "urllib3", "uvicorn", "grpc")

#: Ids of a response that its log line shows.
IDS = frozenset({"payment_id", "email_id", "sms_id", "event_id", "subject"})
#: Characters. Longer ids are hashes that the gateway makes of events without an id, and identify nothing.
MAX_ID_LENGTH = 60
#: Field → the enum's prefix, which the log omits, and the key in the log. `outcome` alone is a job's.
ENUMS = {"status": ("STATUS_", "status"), "outcome": ("OUTCOME_", "event_outcome")}

#: Without tokens every caller has this name, so the log omits it.
ANONYMOUS = ("caller", "local")


class Unfailing(io.TextIOBase):
    """
    Write each text whole, or not at all, and never fail.

    A closed pipe or a full disk under the log must not stop the process.
    """

    def __init__(self, stream: TextIO) -> None:
        buffer: Any = stream.buffer
        self._raw: io.RawIOBase = getattr(buffer, "raw", buffer)

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        written = 0
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            try:
                while written < len(data):
                    written += self._raw.write(data[written:]) or 0
            except OSError:
                if written:
                    self._truncate(written)
        return len(text)

    def _truncate(self, written: int) -> None:
        """Remove a partly written line, unless another process has written after it."""
        file = self._raw.fileno()
        end = os.lseek(file, 0, os.SEEK_CUR)  # OSError: this is a pipe
        if os.fstat(file).st_size == end:
            os.ftruncate(file, end - written)
            os.lseek(file, end - written, os.SEEK_SET)


def configure(process: str, level: str) -> None:
    """Configure structlog and logging. Call it once, before the first log line."""
    output = Unfailing(sys.stdout)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        add_time,
        _add_context(process),
        add_exception,
    ]
    renderer = structlog.processors.JSONRenderer(separators=(",", ":"))
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
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    log = structlog.get_logger()
    sys.excepthook = lambda _kind, error, _trace: log.critical("process.failed", exc_info=error)
    threading.excepthook = lambda failed: log.critical("thread.failed", exc_info=failed.exc_value)


def _add_context(process: str) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        event = {**(context.notes.get() or {}), **event}
        if identity := context.correlation_id.get():
            event["correlation_id"] = identity
        trace = context.traceparent.get()[3:35]
        if trace != identity:
            event["trace_id"] = trace
        return {name: value for name, value in event.items() if (name, value) != ANONYMOUS and value not in (None, "")}

    return add


def add_time(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def add_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the classes of the exception and its causes, and by its last frames."""
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


def log_response(message: Message) -> None:
    """Add the fields of a response and of the messages in it to the log line. A list counts if it has one element."""
    context.note(**_fields(message))
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE and not _is_map(field):
            one: Any = value if isinstance(value, Message) else value[0] if len(value) == 1 else None
            if isinstance(one, Message):
                context.note(**_fields(one))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _fields(message: Message) -> dict[str, str]:
    found = {}
    for field, value in message.ListFields():
        if field.name in IDS and len(value) <= MAX_ID_LENGTH:
            found[field.name] = value
        elif field.name in ENUMS and field.enum_type and value in field.enum_type.values_by_number:
            prefix, key = ENUMS[field.name]
            found[key] = field.enum_type.values_by_number[value].name.rpartition(prefix)[2]
    return found
