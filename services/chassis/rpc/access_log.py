"""The correlation id and the log line of every RPC."""

import asyncio
import time

import grpc
import structlog

from services.chassis import context, metrics
from services.chassis.errors import ServiceError
from services.chassis.rpc.interceptors import Call, Next

REFUSED_CREDENTIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
#: Codes that operators look into.
WARNINGS = (grpc.StatusCode.UNAVAILABLE, *REFUSED_CREDENTIALS)

log = structlog.get_logger()


class CorrelationId:
    """Take the caller's correlation id and trace, or make new ones, and return the id in the trailers."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        identity = context.adopt(call.metadata.get("x-correlation-id", ""), call.metadata.get("traceparent", ""))
        # Not in initial metadata: gRPC clients stop retrying once they have received any.
        call.rpc.set_trailing_metadata((("x-correlation-id", identity),))
        await call_next(call)


class AccessLog:
    """Write one log line and one observation per RPC."""

    async def intercept(self, call: Call, call_next: Next) -> None:
        started = time.monotonic()
        try:
            await call_next(call)
        except asyncio.CancelledError:
            late = call.rpc.time_remaining() == 0
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.monotonic() - started
            metrics.rpc_seconds.labels(call.method, call.code.name).observe(seconds)
            bug = None if isinstance(call.error, ServiceError) else call.error
            reason = getattr(call.error, "reason", None)
            level = 40 if bug else 30 if call.code in WARNINGS else 10 if call.health else 20
            if call.code in REFUSED_CREDENTIALS:
                metrics.credentials_refused_total.labels(reason).inc()
            log.log(
                level, "rpc", method=call.method.removeprefix("/topsmile."), code=call.code.name, reason=reason,
                seconds=round(seconds, 4), caller=context.caller.get() or None, exc_info=bug,
            )  # fmt: skip
