"""GET /v1/status: what a person looks at first when something does not arrive."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.clients import Clients, Service
from gateway.settings import Settings
from services.chassis import metrics

PATIENCE = 1.0  # seconds
OVERDUE = 60.0  # seconds that a due job may wait


class Status:
    """
    For each service and the gateway: `status`, the `reasons` why it is not SERVING, breakers and queues.

    SERVING: it takes work and does it. DEGRADED: it takes work, but some of it is not done now, or for good.
    NOT_SERVING: it says itself that it takes none. UNREACHABLE: it says nothing. Counts are at most some seconds old.
    """

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._operations = {
            clients.payments: settings.payments_operations,
            clients.email: settings.email_operations,
            clients.sms: settings.sms_operations,
        }

    async def __call__(self, _request: Request) -> Response:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            found = await asyncio.gather(*(_ask(http, service, url) for service, url in self._operations.items()))
        services = {service.name: _judged(each) for service, each in zip(self._operations, found, strict=True)}
        return JSONResponse(services | {"gateway": _judged({"status": "SERVING", "queues": metrics.queues})})


async def _ask(http: aiohttp.ClientSession, service: Service, operations: str) -> dict[str, Any]:
    health, details = await asyncio.gather(_health(service), _details(http, service, operations))
    if health is None:
        # The channel calls nobody who is not serving, so only the operator's listener tells that from silence.
        health = "UNREACHABLE" if details["reason"] in {None, "DETAILS_UNREACHABLE"} else "NOT_SERVING"
    return {**details, "status": health, "breaker": service.breaker.state}


async def _health(service: Service) -> str | None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    try:
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    except grpc.aio.AioRpcError:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


async def _details(http: aiohttp.ClientSession, service: Service, operations: str) -> dict[str, Any]:
    """What the service says of itself on its operator's listener: providers, queues, and why it is not ready."""
    try:
        verified = ssl.create_default_context(cafile=service.target.ca) if service.target.ca else True
        name = service.target.name or None
        async with http.get(f"{operations}/readyz", ssl=verified, server_hostname=name) as response:
            details: dict[str, Any] = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {"providers": {}, "queues": {}, "reason": "DETAILS_UNREACHABLE"}
    return {"reason": None, **details}


def _judged(found: Mapping[str, Any]) -> dict[str, Any]:
    reasons = {found.get("reason")}
    if found.get("breaker", "CLOSED") != "CLOSED":
        reasons.add("BREAKER_OPEN")
    if set(found.get("providers", {}).values()) - {"CLOSED"}:
        reasons.add("PROVIDER_BREAKER_OPEN")
    for queue in found.get("queues", {}).values():
        reasons.add(queue["paused"])
        reasons.add("DEAD_LETTERS" if queue["dead"] else None)
        reasons.add("OVERDUE" if queue["oldest_due_seconds"] > OVERDUE else None)
    named = sorted(filter(None, reasons))
    status = "DEGRADED" if named and found["status"] == "SERVING" else found["status"]
    return {**{name: each for name, each in found.items() if name != "reason"}, "status": status, "reasons": named}
