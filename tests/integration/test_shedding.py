"""Refusing before anything else is done."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import Throttled, from_rpc_error
from services.chassis.health import HealthServicer, Readiness
from services.chassis.shedding import Shedding
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Stub, add_echo


async def test_above_so_many_at_once_an_rpc_is_refused_with_a_time_to_come_back() -> None:
    server = grpc.aio.server(interceptors=[Shedding(1)])
    add_echo(EchoServicer(), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(Readiness(FakeStore()), [NAME]), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        first = asyncio.ensure_future(Stub(channel).SendEcho(StringValue(value="0.3")))
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await Stub(channel).SendEcho(StringValue())
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
        await first
        await Stub(channel).SendEcho(StringValue())
    await server.stop(None)

    error = from_rpc_error(raised.value)
    assert (type(error), error.reason, error.retry_after) == (Throttled, "SHEDDING", 1.0)
