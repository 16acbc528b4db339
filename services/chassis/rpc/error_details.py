"""
Errors as gRPC status details, and back: ErrorInfo, BadRequest, RetryInfo and LocalizedMessage of google.rpc.

The trailers of an RPC must fit into 8 KiB, with the details in base64 and the message percent-encoded.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.chassis.errors import (
    ExternalServiceError,
    OutcomeUnknown,
    ServiceError,
    Violation,
    localized,
    retry_after,
)
from services.chassis.violations import Rule

DOMAIN = "topsmile.integrations"
DETAILS_KEY = "grpc-status-details-bin"
MAX_VIOLATION_BYTES = 3200
MAX_MESSAGE_BYTES = 300  # the trailers hold it twice, once percent-encoded
MAX_SENTENCE_BYTES = 400
MAX_METADATA_BYTES, MAX_VALUE_BYTES = 600, 200


def to_status(error: ServiceError) -> status_pb2.Status:
    """Return the status with all details of an error, cut to fit the trailers."""
    status = status_pb2.Status(code=error.code.value[0], message=truncated(error.message, MAX_MESSAGE_BYTES))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: ServiceError) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(_metadata(error)))
    if error.violations:
        yield error_details_pb2.BadRequest(field_violations=_fitting(error.violations))
    if (seconds := retry_after(error)) is not None:
        delay = Duration()
        delay.FromMilliseconds(round(seconds * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    yield error_details_pb2.LocalizedMessage(locale="pt-BR", message=truncated(localized(error), MAX_SENTENCE_BYTES))


def _metadata(error: ServiceError) -> Iterator[tuple[str, str]]:
    """Yield the entries that fit. `service` comes first: it marks the error as a provider's."""
    service = {"service": error.service} if isinstance(error, ExternalServiceError) else {}
    budget = MAX_METADATA_BYTES
    for key, value in (service | error.metadata | service).items():
        short = truncated(value, MAX_VALUE_BYTES)
        budget -= len(key.encode()) + len(short.encode())
        if budget < 0:
            return
        yield key, short


def truncated(text: str, max_bytes: int) -> str:
    """Cut a longer text between two words, and end it with …."""
    if len(text.encode()) <= max_bytes:
        return text
    cut = text.encode()[: max_bytes - 4].decode(errors="ignore")
    return f"{cut.rpartition(' ')[0] or cut} …"


def _fitting(violations: Sequence[Violation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """Yield the violations that fit, each whole, and then the number of those left out."""
    budget = MAX_VIOLATION_BYTES
    for index, violation in enumerate(violations):
        named = error_details_pb2.BadRequest.FieldViolation(
            field=truncated(violation.field, 100),
            description=truncated(violation.description, MAX_SENTENCE_BYTES),
            reason=truncated(violation.reason, 100),
            localized_message=_locale(truncated(violation.localized, MAX_SENTENCE_BYTES)),
        )
        budget -= named.ByteSize() + 4
        if budget < 0:
            more = Rule.MORE.at("", count=len(violations) - index)
            yield error_details_pb2.BadRequest.FieldViolation(
                description=more.description, reason=more.reason, localized_message=_locale(more.localized)
            )
            return
        yield named


def _locale(text: str) -> error_details_pb2.LocalizedMessage | None:
    return error_details_pb2.LocalizedMessage(locale="pt-BR", message=text) if text else None


def kinds() -> dict[tuple[grpc.StatusCode, str, bool], type[ServiceError]]:
    """Return (code, reason, caused by a provider) → class. Reason "" stands for reasons that are not a class's own."""
    found: dict[tuple[grpc.StatusCode, str, bool], type[ServiceError]] = {}
    waiting = [kind for kind in ServiceError.__subclasses__() if kind.__module__ == ServiceError.__module__]
    while waiting:
        kind = waiting.pop(0)
        # A service's own subclasses stay out: the table must not depend on what was imported before.
        waiting += [child for child in kind.__subclasses__() if child.__module__ == ServiceError.__module__]
        external = issubclass(kind, ExternalServiceError)
        if kind is not ExternalServiceError:
            found[kind.code, kind.default_reason, external] = kind
            found.setdefault((kind.code, "", external), kind)
    # Three classes are UNAVAILABLE: an unknown reason must not promise that nothing was done.
    found[grpc.StatusCode.UNAVAILABLE, "", True] = OutcomeUnknown
    return found


KINDS = kinds()


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """
    Rebuild the error that the other service raised, as the same class.

    A status without our details comes from a broken call or from a bug in the service. An error that the service
    reports is not its own fault: the breaker towards it must not open because its provider is down.
    """
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status.ParseFromString(value)
    info = _find(status, error_details_pb2.ErrorInfo)
    external = "service" in info.metadata
    kind = KINDS.get((error.code(), info.reason, external)) or KINDS.get((error.code(), "", external))
    if info.domain != DOMAIN or kind is None:
        unknown = OutcomeUnknown("grpc", error, f"{error.code().name}: {error.details()}")
        unknown.provider_fault = error.code() is not grpc.StatusCode.INTERNAL
        return unknown
    rebuilt = kind.__new__(kind)
    ServiceError.__init__(
        rebuilt,
        status.message,
        reason=info.reason,
        retry_after=_find(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() / 1000 or None,
        localized=_find(status, error_details_pb2.LocalizedMessage).message,
        metadata={key: value for key, value in info.metadata.items() if key != "service"},
        violations=[
            Violation(each.field, each.description, each.reason, each.localized_message.message)
            for each in _find(status, error_details_pb2.BadRequest).field_violations
        ],
    )
    rebuilt.provider_fault = False
    if isinstance(rebuilt, ExternalServiceError):
        rebuilt.service, rebuilt.original = info.metadata["service"], error
    return rebuilt


M = TypeVar("M", bound=Message)


def _find(status: status_pb2.Status, kind: type[M]) -> M:
    """Return the detail of a kind, or an empty one."""
    found = kind()
    any(detail.Unpack(found) for detail in status.details)
    return found
