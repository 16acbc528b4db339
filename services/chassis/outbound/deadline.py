"""The moment after which nobody listens to the answer any more."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)  # time.monotonic()


def remaining() -> float | None:
    """Seconds left, 0.0 when it has passed; None where there is no deadline."""
    moment = _deadline.get()
    return None if moment is None else max(0.0, moment - time.monotonic())


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give what runs inside at most this long. An earlier deadline around it stays the deadline."""
    moment, outer = time.monotonic() + seconds, _deadline.get()
    token = _deadline.set(moment if outer is None else min(moment, outer))
    try:
        yield
    finally:
        _deadline.reset(token)
