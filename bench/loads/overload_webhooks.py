"""Stripe's webhooks by schedule: python -m bench.loads.overload_webhooks PORT RATE SECONDS CONNECTIONS SECRET FILE"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from bench.loads.arrivals import Tally
from bench.loads.webhooks import request

HEAD_END = b"\r\n\r\n"


class Line(asyncio.Protocol):
    """A kept connection with at most one request on it; `idle` holds those that have none."""

    def __init__(self, tally: Tally, idle: "list[Line]", again: "Callable[[], None]") -> None:
        self._tally, self._idle, self._again = tally, idle, again
        self._answer = b""
        self._key = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._idle.append(self)

    def post(self, secret: bytes) -> None:
        event = request(secret)
        self._key = event.partition(b'"id":"')[2][:28].decode()
        self._began = time.perf_counter()
        self._transport.write(event)  # type: ignore[attr-defined]  # asyncio types it too widely

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(HEAD_END)
        if not separator:
            return
        head = head.lower()
        if len(body) < int(head.partition(b"content-length:")[2].partition(b"\r")[0]):
            return
        code, key = head[9:12].decode(), self._key
        self._answer, self._key = b"", ""
        self._tally.answered(self._began, code, key if code == "200" else "", hint=b"retry-after:" in head)
        if b"connection: close" not in head:
            self._idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._key:
            self._tally.answered(self._began, "closed")
        if self in self._idle:
            self._idle.remove(self)
        self._again()


async def main(port: int, rate: float, seconds: float, secret: bytes, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    idle, over = list[Line](), False
    opening: set[asyncio.Task[None]] = set()

    async def open_one() -> None:
        try:
            await loop.create_connection(lambda: Line(tally, idle, again), "127.0.0.1", port)
        except OSError:
            tally.codes["not connected"] += 1

    def again() -> None:
        if not over:
            task = loop.create_task(open_one())
            opening.add(task)
            task.add_done_callback(opening.discard)

    def send() -> bool:
        if not idle:
            return False
        idle.pop().post(secret)
        return True

    for _ in range(tally.at_most):
        await open_one()
    await tally.arrive(rate, seconds, send)
    over = True
    tally.tell()


if __name__ == "__main__":
    port, rate, seconds, connections, secret, accepted = sys.argv[1:]
    uvloop.run(main(int(port), float(rate), float(seconds), secret.encode(), Tally(Path(accepted), int(connections))))
