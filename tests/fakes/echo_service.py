"""A service on the chassis that returns, fails or waits as a test sets it. With -m it runs as a process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from services.chassis import context, lifecycle
from services.chassis.errors import ServiceError
from services.chassis.outbound import deadline
from services.chassis.rpc.server import Service, serve
from services.chassis.settings import ProcessSettings, load

NAME = "topsmile.echo.v1.EchoService"
ADMIN_NAME = "topsmile.echo.v1.EchoAdminService"


class Settings(ProcessSettings, process="ECHO", port=0, operations_port=0):
    #: The worker runs until it is stopped, or fails at once with "die".
    echo_worker: str = "work"


class EchoServicer:
    """Return the context of the call as JSON, or raise `fail_with`, after `linger` seconds."""

    def __init__(self) -> None:
        self.fail_with: Exception | None = None
        self.answer_with: Any = None
        self.linger = 0.0
        self.beat = 0.01  #: Seconds between two answers of a watch.
        self.closed_streams = 0
        self.running = 0

    async def echo(self, request: StringValue, _rpc: Any) -> Any:
        self.running += 1
        try:
            await asyncio.sleep(float(request.value or self.linger))
        finally:
            self.running -= 1
        if self.fail_with is not None:
            raise self.fail_with
        if self.answer_with is not None:
            return self.answer_with
        return StringValue(value=json.dumps(self._known()))

    async def watch(self, _request: StringValue, _rpc: Any) -> AsyncIterator[StringValue]:
        self.running += 1
        try:
            if self.fail_with is not None:
                raise self.fail_with
            while True:
                yield StringValue(value=json.dumps(self._known()))
                await asyncio.sleep(self.beat)
        finally:
            self.running -= 1
            self.closed_streams += 1

    def _known(self) -> dict[str, Any]:
        return {
            "correlation_id": context.correlation_id.get(),
            "traceparent": context.traceparent.get(),
            "caller": context.caller.get(),
            "scopes": sorted(context.scopes.get()),
            "remaining": deadline.remaining(),
        }


def add_echo(servicer: Any, server: Any) -> None:
    unary: Any = grpc.unary_unary_rpc_method_handler(
        servicer.echo, StringValue.FromString, lambda answer: answer.SerializeToString()
    )
    stream: Any = grpc.unary_stream_rpc_method_handler(
        servicer.watch, StringValue.FromString, lambda answer: answer.SerializeToString()
    )
    for name in (NAME, ADMIN_NAME):
        methods = {"SendEcho": unary, "GetEcho": unary, "WatchEchoes": stream}
        server.add_registered_method_handlers(name, methods)


class Stub:
    def __init__(self, channel: grpc.aio.Channel, name: str = NAME) -> None:
        bytes_of, message_of = StringValue.SerializeToString, StringValue.FromString
        self.SendEcho = channel.unary_unary(f"/{name}/SendEcho", bytes_of, message_of)
        self.GetEcho = channel.unary_unary(f"/{name}/GetEcho", bytes_of, message_of)
        self.WatchEchoes = channel.unary_stream(f"/{name}/WatchEchoes", bytes_of, message_of)
        self.SendBytes: Any = channel.unary_unary(f"/{name}/SendEcho")


class FakeStore:
    """A database that takes every write, or raises `fail_with`."""

    fail_with: ServiceError | None = None
    checks = 0
    takes = 0.0  #: Seconds for one check.

    async def ready(self) -> None:
        self.checks += 1
        await asyncio.sleep(self.takes)
        if self.fail_with is not None:
            raise self.fail_with


class FakeWorker:
    def __init__(self, what: str) -> None:
        self._what = what
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        if self._what == "die":
            raise RuntimeError("patient Ana, +5511912345678")
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()


async def main(settings: Settings) -> None:
    await serve(
        settings,
        FakeStore(),
        services=[Service(NAME, add_echo, EchoServicer())],
        workers=[FakeWorker(settings.echo_worker)],
        details={"provider": lambda: "CLOSED"},
    )


if __name__ == "__main__":
    lifecycle.run(main, load(Settings))
