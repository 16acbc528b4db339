"""A real gateway and slow, broken and hostile clients, as bytes over plain sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes import signing
from tests.integration.test_gateway_process import settings
from tests.processes import Process, process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = b'{"id":"evt_%d","type":"x"}'
MIB = 1 << 20
START = b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process("gateway", settings(tmp_path_factory.mktemp("gateway"))) as running:
        yield running


@pytest.fixture(autouse=True)
async def _well_afterwards(gateway: Process) -> AsyncIterator[None]:
    """After each test, other clients are served, memory is limited, and no log line reports a bug."""
    yield
    assert await quick(gateway)
    assert memory_mib(gateway) < 250
    assert "Traceback" not in (log := "".join(gateway.lines))
    assert '"level":"error"' not in log


def address(gateway: Process, listener: str = "http") -> tuple[str, int]:
    host, _, port = gateway.listening[listener].rpartition(":")
    return host, int(port)


def memory_mib(gateway: Process) -> float:
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def signed(body: bytes) -> bytes:
    """Return the head of a webhook without its length."""
    [(name, value)] = signing.stripe_header(body, "whsec_1", int(time.time())).items()
    return b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\n%b: %b\r\n" % (name.encode(), value.encode())


def webhook(body: bytes) -> bytes:
    return signed(body) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def connected(
    gateway: Process, listener: str = "http"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address(gateway, listener))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def exchange(
    gateway: Process, *sent: bytes, listener: str = "http", within: float = 5.0, pause: float = 0
) -> bytes:
    """Send, and return all bytes until the gateway closes or is silent for a second."""
    async with connected(gateway, listener) as (reader, writer), asyncio.timeout(within):
        with suppress(OSError):
            for part in sent:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        received = b""
        with suppress(TimeoutError, OSError):
            while part := await asyncio.wait_for(reader.read(65536), 1.0):
                received += part
        return received


async def status(gateway: Process, *sent: bytes, pause: float = 0) -> int:
    received = await exchange(gateway, *sent, pause=pause)
    return int(received.split()[1]) if received else 0


async def quick(gateway: Process) -> bool:
    """Assert that a webhook and a call each succeed within a second."""
    event = webhook(BODY % time.monotonic_ns())
    began = time.monotonic()
    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        writer.write(event)
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /v1/payments/pay_1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).split()[1] in {b"404", b"503"}  # no payments service is there
    return time.monotonic() - began < 2.0


async def test_body_in_chunks_of_one_byte_is_read_whole(gateway: Process) -> None:
    body = BODY % 1
    chunks = [b"1\r\n%c\r\n" % byte for byte in body]

    received = await status(gateway, signed(body) + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert received == 200


async def test_request_in_single_bytes_is_read_whole(gateway: Process) -> None:
    assert await status(gateway, *(bytes([byte]) for byte in webhook(BODY % 2))) == 200


async def test_expected_body_is_requested_only_when_allowed(gateway: Process) -> None:
    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        body = BODY % 3
        writer.write(signed(body) + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_large_body_is_refused_before_it_is_sent(gateway: Process) -> None:
    head = signed(b"") + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (64 * MIB)

    received = await exchange(gateway, head)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received.lower()


async def test_bytes_after_a_refused_expect_are_no_request(gateway: Process) -> None:
    """The client may send the body or omit it, so the next bytes are ambiguous."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n"

    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"404"
        with suppress(OSError):
            writer.write(webhook(BODY % 4))
            assert b"HTTP/1.1 " not in await reader.read()


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % (64 * MIB), b"Transfer-Encoding: chunked"])
async def test_body_of_64_mib_is_refused_and_not_buffered(gateway: Process, framing: bytes) -> None:
    before = memory_mib(gateway)
    chunk = b"%x\r\n%b\r\n" % (MIB, bytes(MIB)) if b"chunked" in framing else bytes(MIB)

    assert await status(gateway, signed(b"") + framing + b"\r\n\r\n", *[chunk] * 64) == 413
    assert memory_mib(gateway) < before + 30


async def test_concurrent_large_bodies_stay_within_memory(gateway: Process) -> None:
    """SendGrid may send 2 MiB. 200 clients with such open bodies may buffer only a part of them together."""
    before = memory_mib(gateway)
    head = b"POST /webhooks/sendgrid HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (2 * MIB)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connected(gateway)) for _ in range(100)]
        for _, writer in opened:
            with suppress(OSError):
                writer.write(head + bytes(2 * MIB - 1))
                await writer.drain()

        assert memory_mib(gateway) < before + 150
        assert await quick(gateway)
        waits = (asyncio.wait_for(reader.readline(), 1.0) for reader, _ in opened)
        answers = await asyncio.gather(*waits, return_exceptions=True)
        assert [line for line in answers if isinstance(line, bytes)].count(b"HTTP/1.1 503 Service Unavailable\r\n") > 50


async def test_gzip_bomb_is_not_unpacked(gateway: Process) -> None:
    bomb = gzip.compress(bytes(100 * MIB))
    head = b"Host: localhost\r\nContent-Encoding: gzip\r\nIdempotency-Key: 1\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    before = memory_mib(gateway)

    assert await status(gateway, b"POST /v1/payments HTTP/1.1\r\n" + head, bomb) == 400
    assert await status(gateway, b"POST /webhooks/stripe HTTP/1.1\r\n" + head, bomb) == 400
    assert memory_mib(gateway) < before + 10


async def test_large_head_is_refused(gateway: Process) -> None:
    start = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n"
    before = memory_mib(gateway)

    assert await status(gateway, start + b"X-Large: ", *[b"x" * MIB] * 16) == 431
    assert await status(gateway, start, *[b"X-%d: x\r\n" % number for number in range(20_000)]) == 431
    assert await status(gateway, b"GET /", *[b"x" * MIB] * 16) == 431
    assert memory_mib(gateway) < before + 20


@pytest.mark.parametrize(
    "request_",
    [
        START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        START + b"Content-Length: -5\r\n\r\n",
        START + b"Content-Length: 5, 5\r\n\r\nabcde",
        START + b"Content-Length: 99999999999999999999999\r\n\r\n",
        START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nab\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nab\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET /v1/status\r\n",
        b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00\x01\x02\x03 rubbish \xff\xfe\r\n\r\n",
    ],
)
async def test_invalid_or_ambiguous_request_is_400_and_closes_the_connection(gateway: Process, request_: bytes) -> None:
    """A valid request follows. It must not be served, because a proxy in front could see other boundaries."""
    received = await exchange(gateway, request_ + webhook(BODY % 5))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"400"]
    assert b"connection: close" in received.lower()


UPGRADES = [b"h2c", b"websocket", b"h2c, websocket", b"TLS/1.0", b"x"]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_upgrade_is_ignored_and_its_body_is_read(gateway: Process, upgrade: bytes, chunked: bool) -> None:
    """The body exceeds one part for the parser, and its end looks like a request."""
    sent = b"\r\n" * 16_500 + BODY % 10
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent) if chunked else sent
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(sent)
    head = signed(sent) + b"Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % upgrade

    answers = await exchange(
        gateway, head + framing + b"\r\n\r\n" + framed + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404"]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("body", [b"\r\n" * 16_500, b"\r\n" * 40_000, b" " * 33_000, b""])
async def test_body_of_an_upgrade_is_no_request(gateway: Process, upgrade: bytes, body: bytes) -> None:
    sent = body + b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % upgrade

    answers = await exchange(
        gateway, head + b"Content-Length: %d\r\n\r\n" % len(sent), sent[:33_000], sent[33_000:], pause=0.05
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400"]


async def test_upgrade_in_single_bytes_is_one_request(gateway: Process) -> None:
    body = BODY % 11
    head = signed(body) + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert await status(gateway, *(bytes([byte]) for byte in head + body)) == 200


async def test_pipelined_upgrades_are_served_or_disconnected(gateway: Process) -> None:
    upgrade = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert re.findall(rb"HTTP/1.1 (\d+)", await exchange(gateway, upgrade * 20)) == [b"404"] * 20
    assert (await exchange(gateway, upgrade * 20_000)).count(b"HTTP/1.1 404") < 5000


async def test_tls_at_the_plain_port_is_refused(gateway: Process) -> None:
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        await asyncio.wait_for(asyncio.open_connection(*address(gateway), ssl=context, server_hostname="x"), 5)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_incomplete_body_stores_nothing(gateway: Process, framing: bytes) -> None:
    body = BODY % 6
    part = b"%x\r\n%b\r\n" % (len(body), body) if b"chunked" in framing else body
    async with connected(gateway) as (reader, writer):
        writer.write(signed(body) + framing + b"\r\n\r\n" + part)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
    database = sqlite3.connect(gateway.settings["GATEWAY_DATABASE_URL"].removeprefix("sqlite:///"))
    assert database.execute("SELECT COUNT(*) FROM inbox WHERE event_id = 'evt_6'").fetchone() == (0,)
    database.close()


async def test_client_that_closes_its_side_receives_the_response(gateway: Process) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(webhook(BODY % 7))
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")


async def test_reset_within_a_body_affects_no_other_client(gateway: Process) -> None:
    for _ in range(50):
        client = socket.create_connection(address(gateway))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(signed(b"") + b"Content-Length: 1000\r\n\r\nabc")
        client.close()


async def test_pipelined_requests_are_served_in_order(gateway: Process) -> None:
    other = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"

    received = await exchange(gateway, (webhook(BODY % 8) + other) * 10)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404"] * 10


async def test_too_many_pipelined_requests_are_disconnected(gateway: Process) -> None:
    before = memory_mib(gateway)
    flood = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50_000
    for _ in range(3):
        received = await exchange(gateway, flood)
        assert received.count(b"HTTP/1.1 404") < 5000
    assert memory_mib(gateway) < before + 30


async def test_slow_client_is_disconnected_and_delays_no_other(gateway: Process) -> None:
    """Open 1,000 idle connections and 600 slow bodies, which exceeds the concurrency limit."""
    loop = asyncio.get_running_loop()
    before, began = memory_mib(gateway), loop.time()

    async def ends(*sent: bytes, drip: bytes = b"", listener: str = "http") -> tuple[float, bytes]:
        received = b""
        async with connected(gateway, listener) as (reader, writer), asyncio.timeout(15):
            writer.write(b"".join(sent))
            while True:
                try:
                    part = await asyncio.wait_for(reader.read(65536), 1.0)
                except TimeoutError:
                    writer.write(drip)
                    continue
                except OSError:  # reset: it was sent more than it wanted to hear
                    part = b""
                received += part
                if not part:
                    return loop.time() - began, received[9:12]

    start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    slow = {
        "nothing": asyncio.create_task(ends()),
        "head": asyncio.create_task(ends(start, drip=b"X: x\r\n")),
        "lines": asyncio.create_task(ends(b"\r\n", drip=b"\r\n")),
        "body": asyncio.create_task(ends(signed(b"") + b"Content-Length: 1000\r\n\r\n", drip=b"x")),
        "unread": asyncio.create_task(
            ends(b"POST /no HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", drip=b"x")
        ),
        "kept": asyncio.create_task(ends(webhook(BODY % 9))),
        "operator's head": asyncio.create_task(ends(start, drip=b"X: x\r\n", listener="operations")),
    }
    async with AsyncExitStack() as stack:
        for _ in range(1000):
            await stack.enter_async_context(connected(gateway))
        for _ in range(600):
            _, writer = await stack.enter_async_context(connected(gateway))
            writer.write(signed(b"") + b"Content-Length: 1000\r\n\r\n{")
        assert await quick(gateway)
        assert memory_mib(gateway) < before + 60
        seen = {name: await task for name, task in slow.items()}

    assert {"nothing": b"", "head": b"408", "body": b"408", "kept": b"200", "operator's head": b"408"}.items() <= {
        name: answer for name, (_, answer) in seen.items()
    }.items()
    assert max(seconds for seconds, _ in seen.values()) < 13
    assert seen["kept"][0] < 8


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (signed(b"") + b"Content-Length: %d\r\n\r\n" % (64 * MIB), "BODY_TOO_LARGE"),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", "ROUTE_NOT_FOUND"),
        (b"DELETE /v1/payments HTTP/1.1\r\nHost: localhost\r\n\r\n", "METHOD_NOT_ALLOWED"),
        (b"GET /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\n\r\n", "METHOD_NOT_ALLOWED"),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", "NO_HOST"),
        (b"rubbish\r\n\r\n", "BAD_REQUEST"),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * MIB), "HEAD_TOO_LARGE"),
    ],
)
async def test_refusal_is_a_problem_with_a_localized_message(gateway: Process, request_: bytes, reason: str) -> None:
    head, _, body = (await exchange(gateway, request_)).partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"content-type: application/problem+json" in head.lower()
    assert (problem["status"], problem["reason"]) == (int(head.split()[1]), reason)
    assert problem["message"].endswith(".")


@pytest.mark.parametrize("listener", ["http", "operations"])
@pytest.mark.parametrize(
    "host", [b"evil.example", b"10.0.0.1:8080", b"localhost.evil.example", b"[2001:db8::1]", b"", b"["]
)
async def test_foreign_host_on_loopback_is_refused(gateway: Process, listener: str, host: bytes) -> None:
    for path in (b"/v1/status", b"/metrics", b"/nowhere"):
        received = await exchange(gateway, b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host), listener=listener)
        assert (received.split()[1], json.loads(received.partition(b"\r\n\r\n")[2])["reason"]) == (b"421", "WRONG_HOST")


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1:9", b"127.9.9.9", b"[::1]:8080"])
async def test_loopback_hosts_are_served(gateway: Process, host: bytes) -> None:
    received = await exchange(gateway, b"GET /healthz HTTP/1.1\r\nHost: %b\r\n\r\n" % host, listener="operations")
    assert received.split()[1] == b"200"


async def test_trailers_after_the_last_chunk_are_limited(gateway: Process) -> None:
    start = signed(b"") + b"Transfer-Encoding: chunked\r\n\r\n0"
    before = memory_mib(gateway)

    assert await status(gateway, start + b"\r\n", *[b"X: %b\r\n" % (b"x" * 1000)] * 16_000) == 431
    assert await status(gateway, start + b"\r\nX: ", *[b"x" * MIB] * 16) == 431
    assert await status(gateway, start + b";x=", *[b"x" * MIB] * 16) == 431
    assert memory_mib(gateway) < before + 20
