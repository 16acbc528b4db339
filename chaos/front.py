"""
A load balancer in front of a process's replicas, which passes connections to a running one.

What goes through can be cut off with a reset, as a network does, and an answer can be seen before its caller sees it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

#: Closing with a linger of zero seconds is what makes a reset of it.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Replica:
    name: str
    host: str
    port: int


class Front:
    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = list(replicas)
        self._open: set[asyncio.StreamWriter] = set()
        #: Told the replica's name and the first bytes of each answer, before the caller gets them.
        self.seen: Callable[[str, bytes], None] | None = None
        self.url = ""

    @asynccontextmanager
    async def opened(self, port: int) -> AsyncIterator[Front]:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> int:
        """Reset every connection; answers how many there were."""
        found = list(self._open)
        for writer in found:
            reset(writer)
        return len(found)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(OSError):
                await self._between(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await self._connected()
        if found is None:
            reset(writer)
            return
        name, (answers, requests) = found
        self._open.add(requests)
        try:
            ways = [
                asyncio.ensure_future(pump(reader, requests)),
                asyncio.ensure_future(self._back(name, answers, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open.discard(requests)
            requests.close()

    async def _connected(self) -> tuple[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] | None:
        """Connect to the first that listens; the next caller begins with the next one."""
        self._replicas.append(self._replicas.pop(0))
        for replica in list(self._replicas):
            with suppress(OSError):
                return replica.name, await asyncio.open_connection(replica.host, replica.port)
        return None

    async def _back(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.seen is not None:
                self.seen(name, data)
            writer.write(data)
            await writer.drain()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        raw = writer.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
