"""RPCs by schedule: python -m bench.loads.overload_rpcs sms|payments ADDRESS RATE SECONDS UNANSWERED FILE"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import uvloop

from bench.loads.arrivals import Tally
from bench.loads.rpcs import KINDS
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2

CHANNELS = 16
#: A connection for each channel, and no retries of gRPC's own: each refusal is to be seen.
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
REQUESTS: dict[str, Any] = {"sms": sms_pb2.SendSmsRequest, "payments": payments_pb2.CreatePaymentRequest}


async def main(kind: str, address: str, rate: float, seconds: float, tally: Tally) -> None:
    method, make = KINDS[kind]
    running: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))
            for _ in range(CHANNELS)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        calls: cycle[Any] = cycle([channel.unary_unary(method) for channel in channels])

        async def ask(call: Any) -> None:
            request = make()
            began = time.perf_counter()
            try:
                await call(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
                tally.answered(began, error.code().name, hint=b"google.rpc.RetryInfo" in bytes(details))
            else:
                tally.answered(began, "OK", REQUESTS[kind].FromString(request).idempotency_key)

        def send() -> bool:
            task = asyncio.create_task(ask(next(calls)))
            running.add(task)
            task.add_done_callback(running.discard)
            return True

        await tally.arrive(rate, seconds, send)
        for task in running:
            task.cancel()
    tally.tell()


if __name__ == "__main__":
    kind, address, rate, seconds, unanswered, accepted = sys.argv[1:]
    uvloop.run(main(kind, address, float(rate), float(seconds), Tally(Path(accepted), int(unanswered))))
