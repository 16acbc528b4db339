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

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
# Version 00 of https://www.w3.org/TR/trace-context/, whose ids are never all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


def _hex(size: int) -> str:
    """Name something no other will be named; no secret, and not worth a system call at every RPC."""
    return f"{random.getrandbits(8 * size):0{2 * size}x}"


def adopt_correlation_id(offered: str) -> str:
    """Take the caller's id, or a new one where it is missing or unfit for a log line."""
    chosen = offered if _CORRELATION_ID.fullmatch(offered) else _hex(16)
    correlation_id.set(chosen)
    return chosen


def adopt_traceparent(offered: str) -> str:
    """Continue the caller's trace with a span of our own, or begin one."""
    parent = _TRACEPARENT.fullmatch(offered)
    trace, flags = (parent[1], parent[2]) if parent else (_hex(16), "00")
    chosen = f"00-{trace}-{_hex(8)}-{flags}"
    traceparent.set(chosen)
    return chosen


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
    outer = correlation_id.get(), traceparent.get(), caller.get()
    adopt_correlation_id(kept)
    adopt_traceparent(parent)
    caller.set(name)
    try:
        yield
    finally:
        correlation_id.set(outer[0])
        traceparent.set(outer[1])
        caller.set(outer[2])
