"""
Stripe and Twilio that answer at once and remember only how many requested: GET /count

Raw ASGI, so that it takes little of the machine from what is measured.
"""

import itertools
import json
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from bench.peers.listening import run, serve_http

numbers = itertools.count(1)
taken = 0

INTENT = {
    "object": "payment_intent", "amount_capturable": 0, "amount_details": {"tip": {}}, "amount_received": 0,
    "application": None, "application_fee_amount": None, "automatic_payment_methods": {"enabled": True},
    "canceled_at": None, "cancellation_reason": None, "capture_method": "automatic_async",
    "confirmation_method": "automatic", "created": 1767225600, "customer": None, "description": None,
    "last_payment_error": None, "latest_charge": None, "livemode": False, "next_action": None, "on_behalf_of": None,
    "payment_method": None, "payment_method_configuration_details": {"id": "pmc_1", "parent": None},
    "payment_method_options": {"card": {"installments": None, "request_three_d_secure": "automatic"}},
    "payment_method_types": ["card", "boleto"], "processing": None, "receipt_email": None, "review": None,
    "setup_future_usage": None, "shipping": None, "source": None, "statement_descriptor": None,
    "statement_descriptor_suffix": None, "status": "requires_payment_method", "transfer_data": None,
    "transfer_group": None,
}  # fmt: skip
TEXT = {
    "account_sid": "AC" + "0" * 32, "api_version": "2010-04-01", "date_created": "Thu, 01 Jan 2026 00:00:00 +0000",
    "date_sent": None, "date_updated": "Thu, 01 Jan 2026 00:00:00 +0000", "direction": "outbound-api",
    "error_code": None, "error_message": None, "messaging_service_sid": None, "num_media": "0", "num_segments": "1",
    "price": None, "price_unit": "USD", "status": "queued", "subresource_uris": {"media": "/Media.json"},
}  # fmt: skip


def intent(form: dict[str, list[str]]) -> dict[str, object]:
    id = f"pi_{next(numbers):024}"
    metadata = {name[9:-1]: values[0] for name, values in form.items() if name.startswith("metadata[")}
    requested = {"amount": int(form["amount"][0]), "currency": form["currency"][0], "metadata": metadata}
    return {**INTENT, **requested, "id": id, "client_secret": f"{id}_secret_x"}


def text(form: dict[str, list[str]]) -> dict[str, object]:
    sid = f"SM{next(numbers):032x}"
    return {**TEXT, "sid": sid, "to": form["To"][0], "from": form["From"][0], "body": form["Body"][0], "uri": f"/{sid}"}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    global taken  # noqa: PLW0603 - the one thing it remembers
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status, answer = 200, {"count": taken}
    if scope["method"] == "POST":
        taken += 1
        form = parse_qs(body.decode())
        stripe = scope["path"] == "/v1/payment_intents"
        status, answer = (200, intent(form)) if stripe else (201, text(form))  # type: ignore[assignment]
    response = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(response)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": response})


if __name__ == "__main__":
    run(serve_http(app))
