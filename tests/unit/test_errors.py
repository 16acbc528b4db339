from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.chassis import errors
from services.chassis.errors import (
    DeadlineExceeded,
    ExternalServiceError,
    InvalidRequest,
    NotFound,
    NotSent,
    OutcomeUnknown,
    ProviderRejected,
    ServiceError,
    Unavailable,
    Violation,
    retry_after,
)
from services.chassis.rpc.error_details import DETAILS_KEY, KINDS, from_rpc_error, kinds, to_status


def every_kind() -> list[type[ServiceError]]:
    return sorted(set(KINDS.values()), key=lambda kind: kind.__name__)


def made(kind: type[ServiceError]) -> ServiceError:
    if issubclass(kind, ExternalServiceError):
        return kind("stripe", RuntimeError("secret"), "stripe said no", retry_after=2.5)
    if kind is InvalidRequest:
        return InvalidRequest([Violation("amount.currency", "is not ISO 4217")])
    return kind("why", metadata={"payment_id": "pay_1"})


def over_the_wire(error: ServiceError) -> grpc.aio.AioRpcError:
    status = to_status(error)
    trailers = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), trailers, details=status.message)


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_every_error_is_rebuilt_as_the_same_class_with_its_details(kind: type[ServiceError]) -> None:
    sent = made(kind)

    back = from_rpc_error(over_the_wire(sent))

    assert type(back) is kind
    assert (back.message, back.reason, back.retry_after, back.metadata, back.violations, back.definite) == (
        sent.message, sent.reason, retry_after(sent), sent.metadata, sent.violations, sent.definite
    )  # fmt: skip


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_localized_message_and_fits_the_trailers(kind: type[ServiceError]) -> None:
    status = to_status(made(kind))

    texts = [error_details_pb2.LocalizedMessage() for detail in status.details]
    assert any(detail.Unpack(text) for detail, text in zip(status.details, texts, strict=True))
    assert len(status.SerializeToString()) < 4096


def test_hundred_violations_fit_the_trailers() -> None:
    error = InvalidRequest([Violation(f"appointments[{n}].start_time", "está no passado " * 20) for n in range(100)])

    assert len(to_status(error).SerializeToString()) + len(to_status(error).message) < 6000


def test_original_error_does_not_cross_the_wire() -> None:
    status = to_status(NotSent("twilio", RuntimeError("+5511912345678"), "twilio was not reached"))

    assert b"5511912345678" not in status.SerializeToString()


def test_unknown_reason_keeps_its_class() -> None:
    back = from_rpc_error(over_the_wire(ProviderRejected("stripe", None, "declined", reason="DECLINED")))

    assert (type(back), back.reason) == (ProviderRejected, "DECLINED")


@pytest.mark.parametrize(
    ("reason", "definite"), [("OUTCOME_UNKNOWN", False), ("DEADLINE_TOO_SHORT", True), ("SOMETHING_NEW", True)]
)
def test_deadline_error_is_definite_unless_its_reason_is_outcome_unknown(reason: str, definite: bool) -> None:
    sent = DeadlineExceeded("10 s are over", reason=reason)
    back = from_rpc_error(over_the_wire(sent))

    assert (type(back), back.reason, back.definite, sent.definite) == (DeadlineExceeded, reason, definite, definite)


def test_unknown_reason_of_unavailable_is_outcome_unknown() -> None:
    back = from_rpc_error(over_the_wire(NotSent("stripe", None, "?", reason="SOMETHING_NEW")))

    assert type(back) is OutcomeUnknown


def test_reported_error_is_no_provider_fault_and_a_broken_call_is() -> None:
    reported = from_rpc_error(over_the_wire(OutcomeUnknown("stripe", None, "no answer")))
    broken = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="reset"))
    bug = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, details="internal error"))

    assert (reported.provider_fault, broken.provider_fault, bug.provider_fault) == (False, True, False)
    assert [reported.definite, broken.definite, bug.definite] == [False, False, False]


def test_details_of_another_domain_are_ignored() -> None:
    status = status_pb2.Status(code=5, message="x")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="example.com"))
    foreign = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, trailing_metadata=grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    )

    assert type(from_rpc_error(foreign)) is OutcomeUnknown


@pytest.mark.parametrize("base", [ProviderRejected, NotFound, Unavailable])
def test_error_class_of_a_service_changes_nothing_for_others(base: type[ServiceError]) -> None:
    own = type("OfOneService", (base,), {"__module__": __name__})

    assert issubclass(own, ServiceError)
    assert kinds() == KINDS


def test_docstring_names_every_error() -> None:
    drawn = errors.__doc__ or ""

    assert [kind.__name__ for kind in every_kind() if f"x {kind.__name__} " not in drawn] == []
