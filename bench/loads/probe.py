"""
One polite caller, a call after another, 20 a second, until its standard input ends:

python -m bench.loads.probe webhooks PORT SECRET, or sms|payments ADDRESS. Prints [[when, milliseconds, taken], …].
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop

from bench.loads.rpcs import KINDS
from bench.loads.webhooks import request

Ask = Callable[[], Awaitable[bool]]


def webhook(port: int, secret: bytes) -> Ask:
    """Over a new connection each time, as Stripe's come."""

    async def ask() -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(secret))
            first = await reader.readline()
            writer.close()
        except OSError:
            return False
        return first.split()[1:2] == [b"200"]

    return ask


def rpc(kind: str, address: str) -> Ask:
    method, make = KINDS[kind]
    call: Any = grpc.aio.insecure_channel(address).unary_unary(method)

    async def ask() -> bool:
        try:
            await call(make(), timeout=10)
        except grpc.aio.AioRpcError:
            return False
        return True

    return ask


async def main(kind: str, where: str, *secret: str) -> None:
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    ask = webhook(int(where), secret[0].encode()) if kind == "webhooks" else rpc(kind, where)
    seen: list[tuple[float, float, bool]] = []
    while not over.is_set():
        when, began = time.time(), time.perf_counter()
        taken = await ask()
        seen.append((when, (time.perf_counter() - began) * 1000, taken))
        await asyncio.sleep(0.05)
    print(json.dumps(seen))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
