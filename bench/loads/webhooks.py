"""
Stripe's webhooks, signed, over kept connections: python -m bench.loads.webhooks PORT COUNT CONCURRENCY SECRET

Bare sockets, because an HTTP client would need more of the machine than the servers it measures.
"""

import asyncio
import hashlib
import hmac
import secrets
import sys
import time
from collections.abc import Iterator

import uvloop

from bench.loads.latencies import tell

#: A PaymentIntent as Stripe sends it, by the fields that make its size.
EVENT = (
    b'{"id":"evt_%s","object":"event","api_version":"2025-03-31.basil","created":1767225600,"data":{"object":'
    b'{"id":"pi_3PqA1x2eZvKYlo2C1abcdefg","object":"payment_intent","amount":15000,"amount_capturable":0,'
    b'"amount_details":{"tip":{}},"amount_received":15000,"application":null,"application_fee_amount":null,'
    b'"automatic_payment_methods":{"allow_redirects":"always","enabled":true},"canceled_at":null,'
    b'"cancellation_reason":null,"capture_method":"automatic_async","client_secret":"pi_3PqA1x2e_secret_9x",'
    b'"confirmation_method":"automatic","created":1767225590,"currency":"brl","customer":null,'
    b'"description":"Consulta 812","last_payment_error":null,"latest_charge":"ch_3PqA1x2eZvKYlo2C1abcdefg",'
    b'"livemode":false,"metadata":{"topsmile_payment_id":"pay_unknown","patient":"77"},"next_action":null,'
    b'"on_behalf_of":null,"payment_method":"pm_1PqA1x2eZvKYlo2Cabcdefgh","payment_method_configuration_details":'
    b'{"id":"pmc_1PqA1x2eZvKYlo2Cabcdefgh","parent":null},"payment_method_options":{"card":{"installments":null,'
    b'"mandate_options":null,"network":null,"request_three_d_secure":"automatic"}},"payment_method_types":["card",'
    b'"boleto"],"processing":null,"receipt_email":null,"review":null,"setup_future_usage":null,"shipping":null,'
    b'"source":null,"statement_descriptor":null,"statement_descriptor_suffix":null,"status":"succeeded",'
    b'"transfer_data":null,"transfer_group":null}},"livemode":false,"pending_webhooks":1,"request":{"id":'
    b'"req_abcdefghijklmn","idempotency_key":"pay_unknown-create"},"type":"payment_intent.succeeded"}'
)


def request(secret: bytes) -> bytes:
    body = EVENT % secrets.token_hex(12).encode()
    moment = str(int(time.time())).encode()
    proof = hmac.new(secret, moment + b"." + body, hashlib.sha256).hexdigest().encode()
    head = (
        b"POST /webhooks/stripe HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)"
        b"\r\nAccept: */*; q=0.5, application/xml\r\nContent-Type: application/json; charset=utf-8\r\n"
        b"Stripe-Signature: t=%b,v1=%b,v0=%b\r\nContent-Length: %d\r\n\r\n"
    )
    return head % (moment, proof, proof, len(body)) + body


class Connection(asyncio.Protocol):
    """Posts the next request when the last is answered."""

    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self._requests = requests
        self._latencies = latencies
        self._answer = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._post()

    def _post(self) -> None:
        following = next(self._requests, None)
        if following is None:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(following)  # type: ignore[attr-defined]  # asyncio types it too widely

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if len(body) < length:
            return
        self._latencies.append(time.perf_counter() - self._began)
        if not head.startswith(b"HTTP/1.1 200"):
            self.ended.set_exception(RuntimeError(self._answer.decode()))
            self._transport.close()
            return
        self._answer = b""
        self._post()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("closed early"))


async def main(port: int, count: int, concurrency: int, secret: bytes) -> None:
    requests = iter([request(secret) for _ in range(count)])
    latencies: list[float] = []
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(requests, latencies), "127.0.0.1", port)
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(connection.ended for _, connection in opened))
    tell(latencies, time.perf_counter() - began)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()))
