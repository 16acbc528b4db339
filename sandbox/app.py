"""The sandbox put together, and the server it runs in."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette

from sandbox.control import Control
from sandbox.door import ConnectionProtocol, Door
from sandbox.page import Page
from sandbox.sendgrid_api import SendGrid
from sandbox.settings import Settings
from sandbox.signatures import Keys
from sandbox.state import State
from sandbox.stripe_api import Stripe
from sandbox.twilio_api import Twilio
from sandbox.webhooks import Sender


class Server(uvicorn.Server):
    """A server that leaves signals to its process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(settings: Settings) -> socket.socket:
    """OSError says that the port is taken."""
    host, port = settings.address
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.asynccontextmanager
async def running(
    settings: Settings, listener: socket.socket | None = None, state: State | None = None
) -> AsyncIterator[str]:
    """The sandbox, serving; yields its base URL."""
    listener = listener or listen(settings)
    state = state or State(settings.database)
    with state.transaction() as db:
        keys = Keys(db, settings)
    sender = Sender(state, keys, settings.webhook_target)
    door = Door(state, sender)
    app = Starlette(
        routes=[
            *Stripe().routes(door),
            *SendGrid().routes(door),
            *Twilio(keys).routes(door),
            *Control(state, sender, keys).routes(),
            *Page(state, sender).routes(),
        ]
    )
    # Requests that are being held do not hold up the end.
    config = uvicorn.Config(
        app,
        http=ConnectionProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    sending, serving = asyncio.create_task(sender.run()), asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag and no event
            await asyncio.sleep(0.005)
        host, port = listener.getsockname()[:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        sending.cancel()
        await asyncio.gather(serving, sending, return_exceptions=True)
        listener.close()
        state.close()
