"""
What uvicorn leaves open about a connection: how long and how large a request's head may be, how many may stand in line.

A body's limits are its reader's. A proxy in front makes all of this cheaper; nothing relies on one.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.chassis import metrics

HEAD_WITHIN = 10.0  # seconds from the connection, or from the last answer, to the end of the next request's head
HEAD_AT_MOST = 32 << 10  # bytes
IN_LINE = 32  # requests sent before the first is answered
PARTING = 1.0  # seconds in which an unwanted body is read and thrown away after its refusal
#: For files, the database and calls to others: what is left of the process's file descriptors is for connections.
OWN_FILES = 128
CONNECTIONS = 4000

if TYPE_CHECKING:
    Protocol = Any
else:
    Protocol = HttpToolsProtocol


def at_most() -> int:
    """How many connections there may be, having asked the system for all the file descriptors that it gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return CONNECTIONS if hard == resource.RLIM_INFINITY else max(16, min(CONNECTIONS, hard - OWN_FILES))


class Parting:
    """
    A transport that does not slam the door.

    Closed with bytes unread, a connection is reset, and the reset may overtake the answer that says why.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        self._transport = transport
        self._unread = unread
        self._parting = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._parting or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._unread() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._parting = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(PARTING, self._transport.close)


class Connection(Protocol):  # type: ignore[misc]  # uvicorn types it for itself only
    #: Of all listeners of this process together.
    most: int | None = None
    open: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(Parting(transport, self._unread))
        self._in_head, self._head = True, 0
        self._late: asyncio.TimerHandle | None = None
        if Connection.most is None:
            Connection.most = at_most()
        Connection.open += 1
        if Connection.open > Connection.most:
            metrics.rpcs_shed_total.labels("CONNECTIONS").inc()
            self._refuse(b"503 Service Unavailable", b"retry-after: 1\r\n")
            return
        self._await_head()

    def connection_lost(self, error: Exception | None) -> None:
        Connection.open -= 1
        self._head_came()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), HEAD_AT_MOST):
            if self.transport.is_closing():
                return
            waited = self._in_head
            part = data if len(data) <= HEAD_AT_MOST else data[start : start + HEAD_AT_MOST]
            super().data_received(part)
            if waited and self._in_head:  # the parser keeps what it has until the head is complete
                self._head += len(part)
            if self._head > HEAD_AT_MOST:
                self._refuse(b"431 Request Header Fields Too Large")
            elif len(self.pipeline) > IN_LINE:
                self.transport.abort()

    def eof_received(self) -> bool:
        """Let a client that has said all it wants to say hear its answer; uvicorn would hang up on it."""
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if answering:
            self.cycle.keep_alive = False
        return answering

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        self._in_head, self._head = False, 0
        super().on_headers_complete()
        if self.expect_100_continue:
            # Refused, its sender may leave the body out: what comes next cannot be told from it.
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        del msg
        self._head += 1  # whatever follows is not read either
        self._refuse(b"400 Bad Request")

    def _unread(self) -> bool:
        return self._head > 0 or (self.cycle is not None and self.cycle.more_body)

    def _await_head(self) -> None:
        self._head_came()
        self._late = self.loop.call_later(HEAD_WITHIN, self._too_late)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if self._head:
            self._refuse(b"408 Request Timeout")
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: bytes, more: bytes = b"") -> None:
        """Answer outside of any request and hang up; inside of one, whose answer may have begun, only hang up."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 %b\r\n%bcontent-length: 0\r\nconnection: close\r\n\r\n" % (status, more))
        self.transport.close()
