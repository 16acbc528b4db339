"""GET /v1/status: what a person looks at first when something does not arrive."""

import asyncio
import ssl
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.clients import Clients, Service
from gateway.settings import Settings

PATIENCE = 1.0  # seconds


class Status:
    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._operations = {
            clients.payments: settings.payments_operations,
            clients.email: settings.email_operations,
            clients.sms: settings.sms_operations,
        }

    async def __call__(self, _request: Request) -> Response:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            told = await asyncio.gather(*(_tell(http, service, url) for service, url in self._operations.items()))
        return JSONResponse({service.name: said for service, said in zip(self._operations, told, strict=True)})


async def _tell(http: aiohttp.ClientSession, service: Service, operations: str) -> dict[str, Any]:
    health, facts = await asyncio.gather(_health(service), _facts(http, service, operations))
    return {"status": health, "breaker": service.breaker.state, **facts}


async def _health(service: Service) -> str:
    stub = health_pb2_grpc.HealthStub(service.channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    except grpc.aio.AioRpcError:
        return "UNREACHABLE"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def _facts(http: aiohttp.ClientSession, service: Service, operations: str) -> dict[str, Any]:
    """What the service says of its provider, on its operator's listener; null where that is out of reach."""
    try:
        verified = ssl.create_default_context(cafile=service.target.ca) if service.target.ca else True
        name = service.target.name or None
        async with http.get(f"{operations}/readyz", ssl=verified, server_hostname=name) as answer:
            told = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {"provider": None}
    return {name: fact for name, fact in told.items() if name not in {"status", "reason"}}
