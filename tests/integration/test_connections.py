"""How long an HTTP connection lasts: a real listener with short limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from services.chassis import context
from services.chassis.http import server
from services.chassis.http.connections import Connection
from services.chassis.settings import Address
from tests.fakes.gateway import until

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Short(Connection):
    max_head_seconds = 0.5
    max_request_seconds = 1.0
    max_age = 0.6


async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Respond with a mebibyte and with the caller in the context."""
    caller = context.caller.get() or "nobody"
    context.caller.set("somebody")
    headers = [(b"content-length", b"%d" % (1 << 20)), (b"x-caller", caller.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(1 << 20)})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with server.listening(application, Address("127.0.0.1", 0), connection=Short) as address:
        reader, writer = await asyncio.open_connection(*address)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(1 << 20)
    return head


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"\r\n", REQUEST[:-2], b"POST / HTTP/1.1\r\nContent-Le"])
async def test_request_that_never_arrives_closes_its_connection(sent: bytes) -> None:
    async with connected() as (reader, writer), asyncio.timeout(5):
        writer.write(sent)
        received = await reader.read()
    assert received.startswith(b"HTTP/1.1 408 ") if sent else received == b""


@pytest.mark.parametrize("count", [1, 4, 20])
async def test_client_that_reads_no_response_is_disconnected(count: int) -> None:
    async with connected() as (_, writer), asyncio.timeout(5):
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio types it for reading transports
        writer.write(REQUEST * count)
        await asyncio.sleep(0.1)
        await until(lambda: Connection.open == 0)


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.3])
async def test_old_connection_closes_after_its_response(pause: float) -> None:
    async with connected() as (reader, writer), asyncio.timeout(5):
        began, heads = time.monotonic(), list[bytes]()
        while not reader.at_eof() and (not heads or b"connection: close" not in heads[-1]):
            writer.write(REQUEST)
            heads.append(await answer(reader))
            await asyncio.sleep(pause)
        assert time.monotonic() - began > Short.max_age
        assert await reader.read() == b""
    assert len(heads) > 1


async def test_pipelined_request_inherits_no_context() -> None:
    async with connected() as (reader, writer), asyncio.timeout(5):
        writer.write(REQUEST * 3)
        for _ in range(3):
            assert b"x-caller: nobody" in await answer(reader)
