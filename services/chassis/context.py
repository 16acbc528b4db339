"""The context of a call or job. Interceptors and workers set it; logs and outgoing calls read it."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
#: The owner of idempotency keys and limits: the name of a token or certificate, `local` on loopback without tokens.
caller: ContextVar[str] = ContextVar("caller", default="")
#: The scopes of that caller.
scopes: ContextVar[frozenset[str]] = ContextVar("scopes", default=frozenset())

#: Fields that every log line of the call or job shows, such as ids.
notes: ContextVar[dict[str, object] | None] = ContextVar("notes", default=None)

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
# Version 00 of https://www.w3.org/TR/trace-context/, which forbids ids of zeros only.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


def _hex(size: int) -> str:
    """Return a random id of `size` bytes. It is no secret, so it needs no system call at every RPC."""
    return f"{random.getrandbits(8 * size):0{2 * size}x}"


def adopt(offered_id: str, offered_parent: str) -> str:
    """
    Set the correlation id that the caller offers, and continue its trace with a new span. Return the id.

    The trace id stands for an id that is missing or unfit for a log line. A missing trace becomes a new one.
    """
    parent = _TRACEPARENT.fullmatch(offered_parent)
    trace, flags = (parent[1], parent[2]) if parent else (_hex(16), "00")
    chosen = offered_id if _CORRELATION_ID.fullmatch(offered_id) else trace
    correlation_id.set(chosen)
    traceparent.set(f"00-{trace}-{_hex(8)}-{flags}")
    notes.set({})
    return chosen


def note(**fields: object) -> None:
    """Add fields to all later log lines of this call or job. They must hold no name, address or number."""
    if (current := notes.get()) is not None:
        current.update(fields)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata of an RPC to another of our services."""
    metadata = {
        "x-correlation-id": correlation_id.get(),
        "traceparent": traceparent.get(),
        "x-topsmile-caller": caller.get(),
        "x-topsmile-scopes": "+".join(sorted(scopes.get())),
    }
    return tuple((key, value) for key, value in metadata.items() if value)


def trace(on_behalf_of: str = "") -> str:
    """Return the text that a job stores of the call that adds it. With a name, the job runs for that caller."""
    return f"{correlation_id.get()} {traceparent.get()} {on_behalf_of}".rstrip()


@contextmanager
def restored(trace: str) -> Iterator[None]:
    """Run a job with the ids and the caller that its `trace` text holds."""
    identity, parent, name = (*trace.split(" "), "", "", "")[:3]
    outer = correlation_id.get(), traceparent.get(), caller.get(), notes.get()
    adopt(identity, parent)
    caller.set(name)
    try:
        yield
    finally:
        correlation_id.set(outer[0])
        traceparent.set(outer[1])
        caller.set(outer[2])
        notes.set(outer[3])
