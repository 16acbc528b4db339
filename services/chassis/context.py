"""What every piece of work carries along: set by the interceptors and the worker, read by logs and outgoing calls."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
#: Whose idempotency keys and whose limits: the name of a token or certificate, `local` on an anonymous loopback.
caller: ContextVar[str] = ContextVar("caller", default="")
#: What that caller may do here.
scopes: ContextVar[frozenset[str]] = ContextVar("scopes", default=frozenset())

#: What the log lines of this piece of work tell beside their own: the ids and the outcome that are known by then.
notes: ContextVar[dict[str, object] | None] = ContextVar("notes", default=None)

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
# Version 00 of https://www.w3.org/TR/trace-context/, whose ids are never all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


def _hex(size: int) -> str:
    """Name something no other will be named; no secret, and not worth a system call at every RPC."""
    return f"{random.getrandbits(8 * size):0{2 * size}x}"


def adopt(offered_id: str, offered_parent: str) -> str:
    """
    Begin a piece of work: take the caller's correlation id, and continue its trace with a span of our own.

    Where the id is missing or unfit for a log line, it is the trace's; where that is missing, the trace is new. Returns
    the id.
    """
    parent = _TRACEPARENT.fullmatch(offered_parent)
    trace, flags = (parent[1], parent[2]) if parent else (_hex(16), "00")
    chosen = offered_id if _CORRELATION_ID.fullmatch(offered_id) else trace
    correlation_id.set(chosen)
    traceparent.set(f"00-{trace}-{_hex(8)}-{flags}")
    notes.set({})
    return chosen


def note(**known: object) -> None:
    """Have the log lines of this piece of work tell this from now on. Never a name, an address or a number."""
    if (noted := notes.get()) is not None:
        noted.update(known)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """What an RPC to another of our services takes along."""
    carried = {
        "x-correlation-id": correlation_id.get(),
        "traceparent": traceparent.get(),
        "x-topsmile-caller": caller.get(),
        "x-topsmile-scopes": "+".join(sorted(scopes.get())),
    }
    return tuple((key, value) for key, value in carried.items() if value)


def trace(on_behalf_of: str = "") -> str:
    """Return what a job keeps of the call that made it; with a name, the job works for that caller."""
    return f"{correlation_id.get()} {traceparent.get()} {on_behalf_of}".rstrip()


@contextmanager
def restored(trace: str) -> Iterator[None]:
    """Do a job's work with the ids of the call that made it, and for the caller that it names."""
    kept, parent, name = (*trace.split(" "), "", "", "")[:3]
    outer = correlation_id.get(), traceparent.get(), caller.get(), notes.get()
    adopt(kept, parent)
    caller.set(name)
    try:
        yield
    finally:
        correlation_id.set(outer[0])
        traceparent.set(outer[1])
        caller.set(outer[2])
        notes.set(outer[3])
