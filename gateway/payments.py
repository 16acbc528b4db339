"""The payments contract over HTTP and JSON, names in snake_case."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.bodies import fill, idempotency_key, json_object, to_json
from gateway.clients import Clients
from services.chassis.errors import InvalidRequest, NotFound
from services.chassis.violations import Rule, Violation
from topsmile.payments.v1 import payments_pb2


class Payments:
    def __init__(self, clients: Clients) -> None:
        self._service = clients.payments
        self._stub = clients.payment_stub

    async def create(self, request: Request) -> Response:
        wrong: list[Violation] = []
        message = payments_pb2.CreatePaymentRequest(idempotency_key=idempotency_key(request, wrong))
        fill(message, await json_object(request), wrong, without={"idempotency_key"})
        if wrong:
            raise InvalidRequest(wrong)
        answered = await self._service.call(self._stub.CreatePayment, message)
        return JSONResponse(to_json(answered), 201, {"location": f"/v1/payments/{answered.payment.payment_id}"})

    async def list_payments(self, request: Request) -> Response:
        wrong: list[Violation] = []
        query = request.query_params.multi_items()
        names = [name for name, _ in query]
        wrong += [Rule.GIVEN_TWICE.at(name) for name in sorted(set(names)) if names.count(name) > 1]
        listed = payments_pb2.ListPaymentsRequest()
        fill(listed, dict(query), wrong)
        if wrong:
            raise InvalidRequest(wrong)
        answered = await self._service.call(self._stub.ListPayments, listed)
        return JSONResponse(to_json(answered))

    async def get(self, request: Request) -> Response:
        reference = request.path_params["id"]
        message = payments_pb2.GetPaymentRequest()
        if reference.startswith("pay_"):
            message.payment_id = reference
        elif reference.startswith("pi_"):
            message.stripe_payment_intent_id = reference
        else:
            raise NotFound("a payment's id begins with pay_ or pi_")
        answered = await self._service.call(self._stub.GetPayment, message)
        return JSONResponse(to_json(answered))
