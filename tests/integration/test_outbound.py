"""The HTTP client against faulty servers, over real sockets."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from services.chassis.errors import DeadlineExceeded, NotSent, OutcomeUnknown
from services.chassis.outbound import deadline
from services.chassis.outbound.client import MAX_BODY, MAX_CONNECTIONS, outbound, retry_after

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """A server of raw bytes that counts the requests it has read."""

    def __init__(self, behaviour: Callable[["Server"], Conversation]) -> None:
        self._converse = behaviour(self)
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client hung up between two requests
        finally:
            writer.close()

    async def read_request(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        self.requests.append(head + await reader.readexactly(length))


@asynccontextmanager
async def serving(behaviour: Callable[[Server], Conversation]) -> AsyncIterator[Server]:
    server = Server(behaviour)
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield server


def says(*parts: bytes, pause: float = 0.0) -> Callable[[Server], Conversation]:
    def bound(server: Server) -> Conversation:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)

        return converse

    return bound


def reset(server: Server) -> Conversation:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read_request(reader)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return converse


def hang(server: Server) -> Conversation:
    async def converse(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await server.read_request(reader)
        await reader.read()

    return converse


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def test_response_has_status_headers_and_body_for_every_status() -> None:
    async with (
        serving(
            says(b"HTTP/1.1 402 Payment Required\r\nRetry-After: 7\r\nContent-Length: 8\r\n\r\n", b'{"a": 1}')
        ) as up,
        outbound(up.url, service="stripe") as http,
    ):
        answer = await http.request("POST", "/v1/payment_intents", form={"amount": "1099"})

    assert (answer.status, answer.headers["retry-after"], answer.json()) == (402, "7", {"a": 1})
    assert up.requests[0].endswith(b"\r\n\r\namount=1099")


async def test_request_has_headers_credentials_query_and_json() -> None:
    async with (
        serving(says(OK)) as up,
        outbound(f"{up.url}/base/", service="twilio", headers={"X-Ours": "1"}, auth=("sid", "token")) as http,
    ):
        await http.request("POST", "/v1?a=b%2Fc", params={"d": "e f"}, json={"x": 1}, headers={"X-Once": "2"})

    head = up.requests[0]
    assert head.startswith((b"POST /base/v1?a=b%2Fc&d=e+f HTTP/1.1", b"POST /base/v1?a=b%2Fc&d=e%20f HTTP/1.1"))
    assert b"Authorization: Basic c2lkOnRva2Vu\r\n" in head
    assert b"X-Ours: 1\r\n" in head
    assert b"X-Once: 2\r\n" in head
    assert head.endswith(b'{"x": 1}')


async def test_refused_connection_is_not_sent() -> None:
    async with outbound(f"http://127.0.0.1:{unused_port()}", service="stripe") as http:
        with pytest.raises(NotSent):
            await http.request("POST", "/")


async def test_unknown_host_is_not_sent() -> None:
    async with outbound("http://provider.invalid", service="stripe") as http:
        with pytest.raises(NotSent):
            await http.request("POST", "/")


async def test_failed_tls_handshake_is_not_sent() -> None:
    async with (
        serving(lambda _server: lambda reader, _writer: _ignore(reader)) as up,
        outbound(up.url.replace("http:", "https:"), service="stripe") as http,
    ):
        with pytest.raises(NotSent):
            await http.request("POST", "/")


async def _ignore(reader: asyncio.StreamReader) -> None:
    await reader.read(10)


async def test_endless_tls_handshake_is_not_sent() -> None:
    async with (
        serving(lambda _server: lambda reader, _writer: _until_closed(reader)) as up,
        outbound(up.url.replace("http:", "https:"), service="stripe", timeout=0.2) as http,
    ):
        with pytest.raises(NotSent):
            await http.request("POST", "/")


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(1000):
        pass


async def test_timeout_while_waiting_for_a_connection_is_not_sent() -> None:
    async with serving(hang) as up, outbound(up.url, service="stripe") as http:
        holders = [asyncio.create_task(http.request("POST", "/")) for _ in range(MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        with pytest.raises(NotSent):
            await http.request("POST", "/", timeout=0.1)
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(reset, id="reset"),
        pytest.param(says(), id="closed without an answer"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), id="truncated"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), id="truncated chunk"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab"), id="no chunk at all"),
        pytest.param(says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), id="not HTTP"),
        pytest.param(hang, id="hang"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\n", *[b"X-Slow: 1\r\n"] * 20, pause=0.1), id="slow headers"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", *[b"x"] * 40, pause=0.1), id="slow body"),
        pytest.param(
            says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (5 * MAX_BODY), bytes(5 * MAX_BODY)),
            id="huge body",
        ),
    ],
)
async def test_failure_after_the_first_byte_is_outcome_unknown_without_repetition(
    trouble: Callable[[Server], Conversation],
) -> None:
    async with serving(trouble) as up, outbound(up.url, service="twilio", timeout=0.5) as http:
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown) as raised:
            await http.request("POST", "/Messages", data=b"Body=hello")

    assert time.monotonic() - started < 1.5
    assert len(up.requests) == 1
    assert raised.value.definite is False


async def test_post_on_a_dying_connection_is_not_repeated() -> None:
    def once_well(server: Server) -> Conversation:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.write(OK)
            await server.read_request(reader)  # and hangs up instead of listening

        return converse

    async with serving(once_well) as up, outbound(up.url, service="twilio") as http:
        await http.request("POST", "/", data=b"1")
        with pytest.raises(OutcomeUnknown):
            await http.request("POST", "/", data=b"2")

    assert (up.connections, len(up.requests)) == (1, 2)


async def test_closed_idle_connection_is_replaced() -> None:
    async with serving(says(OK)) as up, outbound(up.url, service="twilio") as http:
        for _ in range(3):
            await http.request("POST", "/", data=b"1")
            await asyncio.sleep(0.02)

    assert (up.connections, len(up.requests)) == (3, 3)


async def test_redirect_is_returned_as_response() -> None:
    async with (
        serving(says(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")) as up,
        outbound(up.url, service="sendgrid") as http,
    ):
        answer = await http.request("POST", "/v3/mail/send", json={})

    assert (answer.status, len(up.requests)) == (302, 1)


async def test_deadline_is_kept_within_a_tenth_of_a_second() -> None:
    async with serving(hang) as up, outbound(up.url, service="stripe", timeout=30) as http:
        started = time.monotonic()
        with deadline.within(0.3), pytest.raises(OutcomeUnknown):
            await http.request("POST", "/")

    assert 0.25 < time.monotonic() - started < 0.6


async def test_expired_deadline_sends_nothing_and_is_no_provider_fault() -> None:
    async with serving(says(OK)) as up, outbound(up.url, service="stripe") as http:
        with deadline.within(0), pytest.raises(DeadlineExceeded):
            await http.request("POST", "/")

    assert up.connections == 0


async def test_success_without_json_is_outcome_unknown_and_an_error_page_is_empty() -> None:
    async with (
        serving(says(b"HTTP/1.1 201 Created\r\nContent-Length: 6\r\n\r\n<html>")) as created,
        serving(says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>")) as broken,
        outbound(created.url, service="twilio") as to_created,
        outbound(broken.url, service="twilio") as to_broken,
    ):
        success, error = await to_created.request("POST", "/"), await to_broken.request("POST", "/")

    with pytest.raises(OutcomeUnknown):
        success.json()
    assert error.json() == {}


async def test_connections_are_reused_and_cookies_are_not() -> None:
    seen: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(
            (str(request.transport and request.transport.get_extra_info("peername")), request.headers.get("Cookie"))
        )
        return web.json_response({}, headers={"Set-Cookie": "a=b"})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with outbound(f"http://127.0.0.1:{runner.addresses[0][1]}", service="stripe") as http:
            for _ in range(3):
                await http.request("POST", "/", json={})
    finally:
        await runner.cleanup()

    assert len(set(seen)) == 1
    assert seen[0][1] is None


async def test_cancelled_call_is_no_provider_error() -> None:
    async with serving(hang) as up, outbound(up.url, service="stripe") as http:
        call = asyncio.create_task(http.request("POST", "/"))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


NOW = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"Retry-After": "0"}, 1.0),
        ({"Retry-After": "31536000"}, 600.0),
        ({"Retry-After": "9" * 400}, 600.0),
        ({"Retry-After": "Mon, 21 Sep 2026 14:14:20 GMT"}, 60.0),
        ({"Retry-After": "Monday, 21-Sep-26 14:14:20 GMT"}, 60.0),
        ({"Retry-After": "Mon Sep 21 14:14:20 2026"}, 60.0),
        ({"Retry-After": "Thu, 21 Sep 2056 14:14:20 GMT"}, 600.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1.0),
        ({"X-RateLimit-Reset": "1790000030"}, 30.0),
        ({"X-RateLimit-Reset": "99999999999"}, 600.0),
        ({"Retry-After": "soon", "X-RateLimit-Reset": "1790000030"}, 30.0),
        *(({"Retry-After": text}, None) for text in ("", "soon", "-5", "inf", "nan", "1e9", "1_000", "\u0663", "0x10")),
        ({"Retry-After": "Mon, 99 Sep 2026 99:99:99 GMT"}, None),
        ({"X-RateLimit-Reset": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after_of_every_form_is_read_and_limited(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds
