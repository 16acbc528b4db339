"""CreatePayment the usual way: Stripe's library, as it comes, called in the RPC; nothing is stored."""

import os
from typing import Any

from stripe import StripeClient

from bench.peers.listening import run, serve_rpc
from topsmile.payments.v1 import payments_pb2 as pb


async def main() -> None:
    client = StripeClient("sk_test_bench", base_addresses={"api": os.environ["STRIPE_API_BASE"]})

    async def create(request: pb.CreatePaymentRequest, _rpc: Any) -> pb.CreatePaymentResponse:
        intent = await client.v1.payment_intents.create_async(
            {
                "amount": request.amount.amount_minor,
                "currency": request.amount.currency.lower(),
                "description": request.description,
                "automatic_payment_methods": {"enabled": True},
                "metadata": {"appointment_id": request.appointment_id, "patient_id": request.patient_id},
            },
            {"idempotency_key": request.idempotency_key},
        )
        payment = pb.Payment(stripe_payment_intent_id=intent.id, client_secret=intent.client_secret or "")
        return pb.CreatePaymentResponse(payment=payment)

    method = "topsmile.payments.v1.PaymentService/CreatePayment"
    await serve_rpc(method, create, pb.CreatePaymentRequest, pb.CreatePaymentResponse)


if __name__ == "__main__":
    run(main())
