"""Every RPC of the payments contract is implemented."""

from __future__ import annotations

import inspect
from typing import Any

import grpc_testing
import pytest
from google.protobuf.message_factory import GetMessageClass

from services.payments.servicer import PaymentAdminServicer, PaymentServicer
from topsmile.payments.v1 import payments_pb2 as pb

SERVICES = pb.DESCRIPTOR.services_by_name
IMPLEMENTED: dict[str, type] = {"PaymentService": PaymentServicer, "PaymentAdminService": PaymentAdminServicer}
METHODS = [
    (name, method.name)
    for name, service in SERVICES.items()
    for method in service.methods
    if not method.server_streaming
]


def test_every_service_and_stream_of_the_contract_has_a_servicer() -> None:
    assert set(SERVICES) == set(IMPLEMENTED)
    assert inspect.isasyncgenfunction(PaymentServicer.WatchPayments)


@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_every_rpc_answers_for_itself(service: str, method: str) -> None:
    """An unimplemented one would be the generated servicer's, which only sets UNIMPLEMENTED and raises."""
    descriptor = SERVICES[service].methods_by_name[method]
    servicer: Any = object.__new__(IMPLEMENTED[service])  # what it answers needs no database here
    server = grpc_testing.server_from_dictionary({SERVICES[service]: servicer}, grpc_testing.strict_real_time())
    call = server.invoke_unary_unary(descriptor, (), GetMessageClass(descriptor.input_type)(), None)
    answer, _, _, _ = call.termination()

    # grpcio-testing calls an async method and takes its coroutine for the response.
    assert inspect.iscoroutine(answer)
    answer.close()
    assert method in vars(IMPLEMENTED[service])
