"""
Limits of HTTP connections that uvicorn lacks: upgrades, the size of a head, times, and the number of connections.

The reader of a body limits it. No limit here relies on a proxy in front.
"""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.chassis import metrics
from services.chassis.http import problems

MAX_HEAD = 32 << 10  # bytes; also the largest part that the parser gets at one time
MAX_PIPELINED = 32  # requests that a client may send before the first response
LINGER = 1.0  # seconds that a refused client's data is still read, because a reset could overtake the response
#: File descriptors for files, the database and outgoing calls; the rest are for connections.
RESERVED_FILES = 128
MAX_CONNECTIONS = 4000

if TYPE_CHECKING:
    Protocol = Any
else:
    Protocol = HttpToolsProtocol


def max_connections() -> int:
    """Raise the limit of file descriptors as far as possible, and return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, hard - RESERVED_FILES))


class Connection(Protocol):  # type: ignore[misc]  # uvicorn exports no types for it
    #: Seconds from the connection or the last response to the end of the next head.
    max_head_seconds = 10.0
    #: Seconds from the end of a head until the client has received the response.
    max_request_seconds = 60.0
    #: Seconds until a response closes the connection, so that clients find new replicas.
    max_age = 300.0

    #: Both are of all listeners of this process together.
    limit: int | None = None
    open: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.parser: httptools.HttpRequestParser
        self._framing = 0  # bytes since the end of the last head or the last byte of a body
        self._refused = False
        self._retires_at = self.loop.time() + self.max_age
        self._deadline = self.loop.call_later(self.max_head_seconds, self._expire)
        if Connection.limit is None:
            Connection.limit = max_connections()
        Connection.open += 1
        if Connection.open > Connection.limit:
            metrics.rpcs_shed_total.labels("CONNECTIONS").inc()
            self._refuse(503, "SHEDDING", "too many connections are open", {"retry-after": "1"})

    def connection_lost(self, error: Exception | None) -> None:
        Connection.open -= 1
        self._deadline.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), MAX_HEAD):
            if self._refused or self.transport.is_closing():
                return
            self._feed(data[start : start + MAX_HEAD])

    def _feed(self, data: bytes) -> None:
        self._framing += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    data = b""
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._framing += 1  # the parser reads nothing after an error
            self._refuse(400, "BAD_REQUEST", "the request must be HTTP/1.1")
        if self._framing > MAX_HEAD:
            self._refuse(431, "HEAD_TOO_LARGE", f"the head must have at most {MAX_HEAD} bytes")
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def _without_upgrade(self) -> bytes:
        """
        Return the head without its upgrade headers, for a new parser.

        The old parser would take the body for another protocol's bytes, and then for the next request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("CONNECT is for proxies")
        start = b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([start, *lines, b"", b""])

    def _should_upgrade(self) -> bool:
        """Stop uvicorn from handling a request whose head is parsed again."""
        return True

    def on_headers_complete(self) -> None:
        self._framing = 0
        super().on_headers_complete()
        if self.parser.should_upgrade():
            return
        self._expire_in(self.max_request_seconds)
        # After an `Expect`, a refused client may omit the body, so the next bytes are ambiguous.
        if self.expect_100_continue or self.loop.time() > self._retires_at:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline:
            self._expire_in(self.max_head_seconds)

    def eof_received(self) -> bool:
        """Let a client that has closed its side receive the response; uvicorn would close the connection."""
        responding = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if responding:
            self.cycle.keep_alive = False
        return responding

    def _expire_in(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._framing and (self.cycle is None or self.cycle.response_complete):
            self._refuse(408, "HEAD_TOO_SLOW", f"the head must arrive within {self.max_head_seconds:g} s")
        else:
            self.transport.abort()

    def _refuse(self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """Respond without the application and close; only close where an earlier response is still due."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        waiting = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (waiting and self.cycle.response_started):
            self.transport.abort()
            return
        if waiting:  # this is its response
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        response = problems.answer(problems.Refusal(status, reason, detail, {"connection": "close", **(headers or {})}))
        lines = [b"%b: %b" % header for header in response.raw_headers]
        start = b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())
        self.transport.write(b"\r\n".join([start, *lines, b"", response.body]))
        if not self._framing or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline.cancel()
        self._deadline = self.loop.call_later(LINGER, self.transport.abort)
