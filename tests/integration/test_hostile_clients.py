"""A real gateway before slow, broken and hostile clients: bytes over bare sockets, nobody's HTTP library in between."""

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
    """Whatever a client did, others are served, memory is bounded and nothing was a bug."""
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
    """The lines of a webhook's head that do not tell how long it is."""
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


async def said(gateway: Process, *sent: bytes, listener: str = "http", within: float = 5.0, pause: float = 0) -> bytes:
    """Send and read until the gateway hangs up, or has no more to say for a second."""
    async with connected(gateway, listener) as (reader, writer), asyncio.timeout(within):
        with suppress(OSError):
            for part in sent:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        heard = b""
        with suppress(TimeoutError, OSError):
            while part := await asyncio.wait_for(reader.read(65536), 1.0):
                heard += part
        return heard


async def status(gateway: Process, *sent: bytes, pause: float = 0) -> int:
    heard = await said(gateway, *sent, pause=pause)
    return int(heard.split()[1]) if heard else 0


async def quick(gateway: Process) -> bool:
    """A webhook and a call are answered, each well within a second."""
    event = webhook(BODY % time.monotonic_ns())
    began = time.monotonic()
    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        writer.write(event)
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /v1/payments/pay_1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).split()[1] in {b"404", b"503"}  # no payments service is there
    return time.monotonic() - began < 2.0


async def test_a_body_that_comes_byte_by_byte_in_chunks_is_one_body(gateway: Process) -> None:
    body = BODY % 1
    chunks = [b"1\r\n%c\r\n" % byte for byte in body]

    heard = await status(gateway, signed(body) + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert heard == 200


async def test_a_request_that_comes_byte_by_byte_is_one_request(gateway: Process) -> None:
    assert await status(gateway, *(bytes([byte]) for byte in webhook(BODY % 2))) == 200


async def test_a_body_is_asked_for_only_when_it_may_come(gateway: Process) -> None:
    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        body = BODY % 3
        writer.write(signed(body) + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_too_large_is_refused_before_it_is_sent(gateway: Process) -> None:
    head = signed(b"") + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (64 * MIB)

    heard = await said(gateway, head)
    assert heard.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in heard.lower()


async def test_after_a_refusal_in_place_of_100_nothing_is_taken_for_a_request(gateway: Process) -> None:
    """Its sender may leave the body out, or not: no byte after it can be trusted."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n"

    async with connected(gateway) as (reader, writer), asyncio.timeout(5):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"404"
        with suppress(OSError):
            writer.write(webhook(BODY % 4))
            assert b"HTTP/1.1 " not in await reader.read()


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % (64 * MIB), b"Transfer-Encoding: chunked"])
async def test_64_mib_are_refused_and_not_kept(gateway: Process, framing: bytes) -> None:
    before = memory_mib(gateway)
    chunk = b"%x\r\n%b\r\n" % (MIB, bytes(MIB)) if b"chunked" in framing else bytes(MIB)

    assert await status(gateway, signed(b"") + framing + b"\r\n\r\n", *[chunk] * 64) == 413
    assert memory_mib(gateway) < before + 30


async def test_many_large_bodies_at_once_stay_within_memory(gateway: Process) -> None:
    """SendGrid may send 2 MiB; 200 clients that keep such a body open hold no more than a part of it together."""
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


async def test_a_gzip_bomb_is_never_unpacked(gateway: Process) -> None:
    bomb = gzip.compress(bytes(100 * MIB))
    head = b"Host: localhost\r\nContent-Encoding: gzip\r\nIdempotency-Key: 1\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    before = memory_mib(gateway)

    assert await status(gateway, b"POST /v1/payments HTTP/1.1\r\n" + head, bomb) == 400
    assert await status(gateway, b"POST /webhooks/stripe HTTP/1.1\r\n" + head, bomb) == 400
    assert memory_mib(gateway) < before + 10


async def test_a_head_too_large_is_refused(gateway: Process) -> None:
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
async def test_what_is_no_request_or_two_at_once_is_400_and_hung_up_on(gateway: Process, request_: bytes) -> None:
    """Followed by a good request, which must not be taken: a proxy in front might have seen other borders."""
    heard = await said(gateway, request_ + webhook(BODY % 5))
    assert re.findall(rb"HTTP/1.1 (\d+)", heard) == [b"400"]
    assert b"connection: close" in heard.lower()


UPGRADES = [b"h2c", b"websocket", b"h2c, websocket", b"TLS/1.0", b"x"]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_is_ignored_and_its_body_is_read(gateway: Process, upgrade: bytes, chunked: bool) -> None:
    """More than the parser is fed at a time, and its end would be a request of its own."""
    sent = b"\r\n" * 16_500 + BODY % 10
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent) if chunked else sent
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(sent)
    head = signed(sent) + b"Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % upgrade

    answers = await said(
        gateway, head + framing + b"\r\n\r\n" + framed + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404"]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("body", [b"\r\n" * 16_500, b"\r\n" * 40_000, b" " * 33_000, b""])
async def test_no_byte_of_a_body_is_taken_for_a_request(gateway: Process, upgrade: bytes, body: bytes) -> None:
    sent = body + b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % upgrade

    answers = await said(
        gateway, head + b"Content-Length: %d\r\n\r\n" % len(sent), sent[:33_000], sent[33_000:], pause=0.05
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400"]


async def test_an_upgrade_that_comes_byte_by_byte_is_one_request(gateway: Process) -> None:
    body = BODY % 11
    head = signed(body) + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert await status(gateway, *(bytes([byte]) for byte in head + body)) == 200


async def test_many_upgrades_in_line_are_answered_or_hung_up_on(gateway: Process) -> None:
    asked = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert re.findall(rb"HTTP/1.1 (\d+)", await said(gateway, asked * 20)) == [b"404"] * 20
    assert (await said(gateway, asked * 20_000)).count(b"HTTP/1.1 404") < 5000


async def test_tls_at_the_plain_port_is_refused(gateway: Process) -> None:
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        await asyncio.wait_for(asyncio.open_connection(*address(gateway), ssl=context, server_hostname="x"), 5)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_ends_early_stores_nothing(gateway: Process, framing: bytes) -> None:
    body = BODY % 6
    part = b"%x\r\n%b\r\n" % (len(body), body) if b"chunked" in framing else body
    async with connected(gateway) as (reader, writer):
        writer.write(signed(body) + framing + b"\r\n\r\n" + part)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
    database = sqlite3.connect(gateway.settings["GATEWAY_DATABASE_URL"].removeprefix("sqlite:///"))
    assert database.execute("SELECT COUNT(*) FROM inbox WHERE event_id = 'evt_6'").fetchone() == (0,)
    database.close()


async def test_a_client_that_has_said_all_may_close_its_half_and_hear_the_answer(gateway: Process) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(webhook(BODY % 7))
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")


async def test_a_reset_in_mid_body_is_nobody_else_s_trouble(gateway: Process) -> None:
    for _ in range(50):
        client = socket.create_connection(address(gateway))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(signed(b"") + b"Content-Length: 1000\r\n\r\nabc")
        client.close()


async def test_requests_sent_without_waiting_are_answered_in_their_order(gateway: Process) -> None:
    other = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"

    heard = await said(gateway, (webhook(BODY % 8) + other) * 10)
    assert re.findall(rb"HTTP/1.1 (\d+)", heard) == [b"200", b"404"] * 10


async def test_too_many_requests_in_line_are_hung_up_on(gateway: Process) -> None:
    before = memory_mib(gateway)
    flood = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50_000
    for _ in range(3):
        heard = await said(gateway, flood)
        assert heard.count(b"HTTP/1.1 404") < 5000
    assert memory_mib(gateway) < before + 30


async def test_whoever_is_slow_is_let_go_and_holds_up_nobody(gateway: Process) -> None:
    """1,000 idle connections and 600 slow bodies: more than may run at once."""
    loop = asyncio.get_running_loop()
    before, began = memory_mib(gateway), loop.time()

    async def ends(*sent: bytes, drip: bytes = b"", listener: str = "http") -> tuple[float, bytes]:
        heard = b""
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
                heard += part
                if not part:
                    return loop.time() - began, heard[9:12]

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
async def test_a_refusal_is_a_problem_with_a_sentence_for_people(
    gateway: Process, request_: bytes, reason: str
) -> None:
    head, _, body = (await said(gateway, request_)).partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"content-type: application/problem+json" in head.lower()
    assert (problem["status"], problem["reason"]) == (int(head.split()[1]), reason)
    assert problem["message"].endswith(".")


@pytest.mark.parametrize("listener", ["http", "operations"])
@pytest.mark.parametrize(
    "host", [b"evil.example", b"10.0.0.1:8080", b"localhost.evil.example", b"[2001:db8::1]", b"", b"["]
)
async def test_a_stranger_s_host_is_refused_on_loopback(gateway: Process, listener: str, host: bytes) -> None:
    for path in (b"/v1/status", b"/metrics", b"/nowhere"):
        heard = await said(gateway, b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host), listener=listener)
        assert (heard.split()[1], json.loads(heard.partition(b"\r\n\r\n")[2])["reason"]) == (b"421", "WRONG_HOST")


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1:9", b"127.9.9.9", b"[::1]:8080"])
async def test_loopback_s_own_names_are_served(gateway: Process, host: bytes) -> None:
    heard = await said(gateway, b"GET /healthz HTTP/1.1\r\nHost: %b\r\n\r\n" % host, listener="operations")
    assert heard.split()[1] == b"200"


async def test_what_follows_a_body_s_last_chunk_is_bounded(gateway: Process) -> None:
    start = signed(b"") + b"Transfer-Encoding: chunked\r\n\r\n0"
    before = memory_mib(gateway)

    assert await status(gateway, start + b"\r\n", *[b"X: %b\r\n" % (b"x" * 1000)] * 16_000) == 431
    assert await status(gateway, start + b"\r\nX: ", *[b"x" * MIB] * 16) == 431
    assert await status(gateway, start + b";x=", *[b"x" * MIB] * 16) == 431
    assert memory_mib(gateway) < before + 20
