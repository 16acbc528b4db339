"""An HTTP listener: uvicorn without its own handling of signals, logs and ports in use."""

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from services.chassis.http import problems
from services.chassis.http.connections import Connection
from services.chassis.lifecycle import GRACE
from services.chassis.rpc.authentication import is_loopback
from services.chassis.settings import Address, ProcessSettings


class LoopbackHosts:
    """
    Refuse requests to other hosts.

    With DNS rebinding, a foreign page can make a browser call a loopback listener under the page's host.
    """

    def __init__(self, app: ASGIApp, others: Collection[str]) -> None:
        self._app = app
        self._others = others
        self._known = lru_cache(maxsize=256)(self._is_known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and not self._known(hosts[0]):
            app = problems.answer(problems.Refusal(421, "WRONG_HOST", "Host must be localhost or PUBLIC_URL's"))
        await app(scope, receive, send)

    def _is_known(self, value: bytes) -> bool:
        try:
            host = urlsplit(f"//{value.decode()}").hostname or ""
        except ValueError:
            return False
        return is_loopback(host) or host in self._others


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # lifecycle.py handles signals for the whole process


@asynccontextmanager
async def listening(
    app: ASGIApp,
    address: Address,
    *,
    hosts: Collection[str] = (),
    connection: type[asyncio.Protocol] = Connection,
    **config: Any,
) -> AsyncIterator[Address]:
    """
    Serve HTTP while the body runs, then finish the open requests. Yield the address, with port 0 resolved.

    On loopback, it serves only requests to loopback's names and to `hosts`.
    """
    if is_loopback(address.host):
        app = LoopbackHosts(app, hosts)
    server = _Server(
        uvicorn.Config(
            app,
            http=connection,
            ws="none",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=int(GRACE),
            reset_contextvars=True,  # a pipelined request starts in the context of the previous one
            **config,
        )
    )
    bound = bind(address)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has a flag for it, no event
            await asyncio.sleep(0.01)
        yield Address(address.host, bound.getsockname()[1])
    finally:
        server.should_exit = True
        await task
        bound.close()


def tls(settings: ProcessSettings) -> dict[str, Any]:
    """Return uvicorn's arguments for TLS, where the process has a certificate. Clients need no certificate."""
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}


def bind(address: Address) -> socket.socket:
    """Bind a socket. Raises SystemExit with the reason where that fails."""
    family, kind, protocol, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise SystemExit(f"cannot listen on {address}: {error.strerror}") from error
    return bound
