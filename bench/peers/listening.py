"""How every peer starts: on uvloop like ours, with one line about where it listens, until SIGTERM."""

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import uvicorn
import uvloop
from starlette.types import ASGIApp


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def told_to_end() -> asyncio.Event:
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    return event


async def serve_http(app: ASGIApp) -> None:
    bound = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http="httptools", ws="none")
    print(json.dumps({"event": "listening", "http": f"127.0.0.1:{bound.getsockname()[1]}"}))
    await uvicorn.Server(config).serve(sockets=[bound])


async def serve_rpc(method: str, behaviour: Callable[[Any, Any], Awaitable[Any]], request: Any, response: Any) -> None:
    """Serve one method with nothing around it."""
    ended = told_to_end()
    server = grpc.aio.server()
    service, _, name = method.rpartition("/")
    handler = grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, response.SerializeToString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "listening", "grpc": f"127.0.0.1:{port}"}))
    await ended.wait()
    await server.stop(1)
