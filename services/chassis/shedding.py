"""
Refusing cheaply: above what may run together, an RPC is answered before anything else is done for it.

No log line, no caller, no parsing: at ten times too much load, what a refusal costs is what is missing for the rest.
"""

from __future__ import annotations

from typing import Any

import grpc

from services.chassis import metrics
from services.chassis.errors import DETAILS_KEY, Throttled, to_status

REFUSAL = to_status(Throttled("too many RPCs are running", reason="SHEDDING", retry_after=1.0))
TRAILERS = ((DETAILS_KEY, REFUSAL.SerializeToString()),)


async def _refuse(_request: Any, rpc: grpc.aio.ServicerContext[Any, Any]) -> None:
    metrics.rpcs_shed_total.labels("SHEDDING").inc()
    await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, REFUSAL.message, TRAILERS)


REFUSE: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_refuse)


class Shedding(grpc.aio.ServerInterceptor):
    """Streams and health checks pass: the first are counted further in, the second tell that this process is alive."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running = 0

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Any = await continuation(handler_call_details)
        unary = handler is not None and handler.unary_unary is not None
        if not unary or handler_call_details.method.startswith("/grpc.health."):
            return handler
        if self._running >= self._at_once:
            return REFUSE
        inner = handler.unary_unary

        async def counted(request: Any, rpc: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self._running += 1
            try:
                return await inner(request, rpc)
            finally:
                self._running -= 1

        return grpc.unary_unary_rpc_method_handler(counted, handler.request_deserializer, handler.response_serializer)
