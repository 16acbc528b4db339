"""RPCs from one channel: python -m bench.loads.rpcs sms|payments ADDRESS COUNT CONCURRENCY"""

import asyncio
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import uvloop

from bench.loads.latencies import tell
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2


def sms() -> bytes:
    recipient = f"+55119{random.randint(10_000_000, 99_999_999)}"
    body = "Lembrete: sua consulta foi marcada para quinta-feira às 14:30 com a Dra. Beatriz Lima."
    request = sms_pb2.SendSmsRequest(idempotency_key=secrets.token_hex(12), recipient=recipient, body=body)
    return request.SerializeToString()


def payment() -> bytes:
    key = secrets.token_hex(12)
    request = payments_pb2.CreatePaymentRequest(
        idempotency_key=key,
        amount=common.Money(amount_minor=15000, currency="BRL"),
        appointment_id=f"a-{key}",
        patient_id="77",
        description="Consulta",
    )
    return request.SerializeToString()


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "sms": ("/topsmile.sms.v1.SmsService/SendSms", sms),
    "payments": ("/topsmile.payments.v1.PaymentService/CreatePayment", payment),
}


async def main(kind: str, address: str, count: int, concurrency: int) -> None:
    method, make = KINDS[kind]
    requests = iter([make() for _ in range(count)])
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        call: Any = channel.unary_unary(method)  # bytes in, bytes out: what is measured is the server

        async def caller(mine: Iterator[bytes]) -> None:
            for request in mine:
                began = time.perf_counter()
                await call(request, timeout=30)
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller(requests) for _ in range(concurrency)))
        tell(latencies, time.perf_counter() - began)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
