"""
The errors a caller is meant to act on, and the table that takes them over gRPC and back.

* ServiceError
  x InvalidRequest           INVALID_ARGUMENT     fix the request: every wrong field is named
  x NotFound                 NOT_FOUND            no such payment, mail, text
  x AlreadyExists            ALREADY_EXISTS       there is one
    x IdempotencyReuse                            same key, different request
  x InProgress               ABORTED              the same request is running
  x Rejected                 FAILED_PRECONDITION  no, for good
  x Throttled                RESOURCE_EXHAUSTED   later, see retry_after
  x Unavailable              UNAVAILABLE          not done, or nobody knows; safe with the same key
    x BreakerOpen                                 not attempted
  x Unauthenticated          UNAUTHENTICATED      who are you
  x PermissionDenied         PERMISSION_DENIED    not with this token
  x OutOfRange               OUT_OF_RANGE         the cursor is older than the log
  x DeadlineExceeded         DEADLINE_EXCEEDED    too little time; nothing was done
    x RanOutOfTime                                begun and not finished; it may have been done
  x ExternalServiceError (service, original)      what a provider caused; each also one of the above
    x NotSent                UNAVAILABLE          no byte has left
    x OutcomeUnknown         UNAVAILABLE          it may have been done
    x CredentialsRefused     UNAVAILABLE          our key is wrong, not the caller's request
    x ProviderThrottled      RESOURCE_EXHAUSTED   its 429
    x ProviderRefusedInput   INVALID_ARGUMENT     it read the request and found a fault
    x ProviderRejected       FAILED_PRECONDITION  it said no: declined, opted out
    x ProviderNotFound       NOT_FOUND
    x ProviderBusy           ABORTED              the same key again, later
    x ProviderKeyReused      ALREADY_EXISTS
"""
# ruff: noqa: N818 - they are outcomes with names; half of them are answers and no errors of anybody

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import ClassVar, TypedDict, TypeVar, Unpack

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.chassis.violations import Rule
from services.chassis.violations import Violation as Violation  # noqa: PLC0414 - a part of what the errors say

DOMAIN = "topsmile.integrations"
DETAILS_KEY = "grpc-status-details-bin"
# The trailers of an RPC have to fit into 8 KiB: the details as base64, and the message once more, percent-encoded.
MAX_VIOLATION_BYTES = 3200
MAX_MESSAGE_BYTES = 300  # it travels twice, once percent-encoded
MAX_SENTENCE_BYTES = 400
MAX_METADATA_BYTES, MAX_VALUE_BYTES = 600, 200
#: Seconds until a request whose outcome is unknown is worth repeating, for callers: inside, each layer has its own.
OUTCOME_UNKNOWN_DELAY = 5.0


class Facts(TypedDict, total=False):
    """What any error may carry besides its message and violations."""

    reason: str | None
    retry_after: float | None
    localized: str | None
    metadata: Mapping[str, str] | None


class ServiceError(Exception):
    """
    Not raised itself: an error nobody has named is a bug, hence INTERNAL.

    `message` is for developers and crosses the wire: no address, number, body or token in it.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"
    default_retry_after: ClassVar[float | None] = None  #: Seconds to wait, where nobody knows better.
    definite: bool = True  #: It is known that nothing was done.
    provider_fault: bool | None = False  #: Counts for a breaker; None: says nothing about the provider's health.
    retryable: bool = False  #: Provably safe to repeat at once.

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after: float | None = None,
        localized: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.localized = localized
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)


class InvalidRequest(ServiceError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], **facts: Unpack[Facts]) -> None:
        message = "; ".join(f"{each.field}: {each.description}" for each in violations)
        super().__init__(message, violations=violations, **facts)


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class IdempotencyReuse(AlreadyExists):
    default_reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self, differing: Sequence[str], **facts: Unpack[Facts]) -> None:
        message = f"this idempotency_key was used for another request; different: {', '.join(differing)}"
        violations = [Rule.KEY_REUSED.at(field) for field in differing]
        super().__init__(message, violations=violations, **facts)


class InProgress(ServiceError):
    code = grpc.StatusCode.ABORTED
    default_reason = "IN_PROGRESS"
    default_retry_after = 1.0


class Rejected(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "REJECTED"


class Throttled(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "THROTTLED"


class Unavailable(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class BreakerOpen(Unavailable):
    default_reason = "BREAKER_OPEN"


class Unauthenticated(ServiceError):
    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class OutOfRange(ServiceError):
    code = grpc.StatusCode.OUT_OF_RANGE
    default_reason = "CURSOR_TOO_OLD"


class DeadlineExceeded(ServiceError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_TOO_SHORT"


class RanOutOfTime(DeadlineExceeded):
    default_reason = "OUTCOME_UNKNOWN"
    definite = False


class ExternalServiceError(ServiceError):
    """`service` crosses the wire, `original` stays for the logs."""

    def __init__(
        self,
        service: str,
        original: object,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        **facts: Unpack[Facts],
    ) -> None:
        ServiceError.__init__(self, message, violations=violations, **facts)  # the other parents' differ
        self.service = service
        self.original = original


class NotSent(ExternalServiceError, Unavailable):
    default_reason = "NOT_SENT"
    provider_fault = True
    retryable = True


class OutcomeUnknown(ExternalServiceError, Unavailable):
    default_reason = "OUTCOME_UNKNOWN"
    definite = False
    provider_fault: bool | None = True
    kept: bool = False  #: The provider stores this answer and repeats it for the same key.


class CredentialsRefused(ExternalServiceError, Unavailable):
    default_reason = "PROVIDER_CREDENTIALS"


class ProviderThrottled(ExternalServiceError, Throttled):
    retryable = True


class ProviderRefusedInput(ExternalServiceError, InvalidRequest):
    default_reason = "PROVIDER_REFUSED_INPUT"


class ProviderRejected(ExternalServiceError, Rejected):
    default_reason = "PROVIDER_REJECTED"


class ProviderNotFound(ExternalServiceError, NotFound):
    default_reason = "PROVIDER_NOT_FOUND"


class ProviderBusy(ExternalServiceError, InProgress):
    default_reason = "PROVIDER_BUSY"


class ProviderKeyReused(ExternalServiceError, AlreadyExists):
    default_reason = "PROVIDER_KEY_REUSED"


# What a person may be shown. A reason that is not here is said in the words of its status code.
PORTUGUESE = {
    "INVALID_REQUEST": "Alguns dados estão incorretos. Confira e tente de novo.",
    "IDEMPOTENCY_KEY_REUSED": "Este pedido já foi enviado com outros dados.",
    "PAYMENT_OPEN": "Já existe um pagamento em aberto para esta consulta.",
    "PAYMENT_ALREADY_PAID": "Esta consulta já foi paga.",
    "DECLINED": "O pagamento foi recusado. Tente outra forma de pagamento.",
    "OUTCOME_UNKNOWN": "Ainda não sabemos se o pedido foi concluído. Repita o mesmo pedido {when}.",
    "DEADLINE_TOO_SHORT": "Não houve tempo para atender ao pedido. Tente de novo.",
    "CURSOR_TOO_OLD": "Estas alterações não estão mais disponíveis.",
    "INVALID_ARGUMENT": "Alguns dados foram recusados. Confira e tente de novo.",
    "NOT_FOUND": "Não encontramos o que foi pedido.",
    "ALREADY_EXISTS": "Isto já existe.",
    "ABORTED": "Este pedido já está em andamento. Tente de novo {when}.",
    "FAILED_PRECONDITION": "O pedido foi recusado.",
    "RESOURCE_EXHAUSTED": "Há muitos pedidos agora. Tente de novo {when}.",
    "UNAVAILABLE": "O serviço está indisponível no momento. Tente de novo {when}.",
    "UNAUTHENTICATED": "É preciso se identificar.",
    "PERMISSION_DENIED": "Sem permissão para esta operação.",
    "DEADLINE_EXCEEDED": "Não houve tempo para atender ao pedido. Tente de novo.",
    "OUT_OF_RANGE": "O pedido está fora do intervalo disponível.",
    "INTERNAL": "Ocorreu um erro inesperado.",
}


def to_status(error: ServiceError) -> status_pb2.Status:
    """Say everything the error knows, in google.rpc's words."""
    status = status_pb2.Status(code=error.code.value[0], message=shortened(error.message, MAX_MESSAGE_BYTES))
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
    yield error_details_pb2.LocalizedMessage(locale="pt-BR", message=shortened(localized(error), MAX_SENTENCE_BYTES))


def _metadata(error: ServiceError) -> Iterator[tuple[str, str]]:
    """Leave out entries for which there is no room, but never `service`: it says what kind of error it is."""
    service = {"service": error.service} if isinstance(error, ExternalServiceError) else {}
    room = MAX_METADATA_BYTES
    for key, value in (service | error.metadata | service).items():
        short = shortened(value, MAX_VALUE_BYTES)
        room -= len(key.encode()) + len(short.encode())
        if room < 0:
            return
        yield key, short


def retry_after(error: ServiceError) -> float | None:
    """Return the seconds after which the caller may try again; None where nobody knows or it would not help."""
    unknown = error.retry_after is None and error.reason == "OUTCOME_UNKNOWN"
    return OUTCOME_UNKNOWN_DELAY if unknown else error.retry_after


def localized(error: ServiceError) -> str:
    """Say it to a person (pt-BR)."""
    sentence = error.localized or PORTUGUESE.get(error.reason) or PORTUGUESE[error.code.name]
    return sentence.replace("{when}", _when(retry_after(error) or 0.0))


def _when(seconds: float) -> str:
    for unit, singular, plural in (
        (86_400, "um dia", "dias"),
        (3600, "uma hora", "horas"),
        (60, "um minuto", "minutos"),
    ):
        if seconds > unit:
            return f"em {ceil(seconds / unit)} {plural}"
        if seconds > unit / 2:
            return f"em {singular}"
    return "em instantes"


def shortened(text: str, most: int) -> str:
    """Cut a text of more bytes than that between two words, and say so."""
    if len(text.encode()) <= most:
        return text
    cut = text.encode()[: most - 4].decode(errors="ignore")
    return f"{cut.rpartition(' ')[0] or cut} …"


def _fitting(violations: Sequence[Violation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """Name as many as there is room for, each whole, and then how many more there are."""
    room = MAX_VIOLATION_BYTES
    for index, violation in enumerate(violations):
        named = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(violation.field, 100),
            description=shortened(violation.description, MAX_SENTENCE_BYTES),
            reason=shortened(violation.reason, 100),
            localized_message=_locale(shortened(violation.localized, MAX_SENTENCE_BYTES)),
        )
        room -= named.ByteSize() + 4
        if room < 0:
            more = Rule.MORE.at("", count=len(violations) - index)
            yield error_details_pb2.BadRequest.FieldViolation(
                description=more.description, reason=more.reason, localized_message=_locale(more.localized)
            )
            return
        yield named


def _locale(text: str) -> error_details_pb2.LocalizedMessage | None:
    return error_details_pb2.LocalizedMessage(locale="pt-BR", message=text) if text else None


def _kinds() -> dict[tuple[grpc.StatusCode, str, bool], type[ServiceError]]:
    """(code, reason, caused by a provider) → class; reason "" for reasons that only one service knows."""
    found: dict[tuple[grpc.StatusCode, str, bool], type[ServiceError]] = {}
    waiting = list(ServiceError.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        waiting += [child for child in kind.__subclasses__() if child not in waiting]
        external = issubclass(kind, ExternalServiceError)
        if kind is not ExternalServiceError:
            found[kind.code, kind.default_reason, external] = kind
            found.setdefault((kind.code, "", external), kind)
    # Of the three that are UNAVAILABLE, the one that promises least.
    found[grpc.StatusCode.UNAVAILABLE, "", True] = OutcomeUnknown
    return found


KINDS = _kinds()


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """
    Rebuild what the other service raised, as the same class.

    Without our details it was no answer of the service's but a broken call, or a bug in the service. An error the
    service has reported is no fault of the service: its breaker is not to open because its provider is down.
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
    """Find the detail of that kind, an empty one where there is none."""
    found = kind()
    any(detail.Unpack(found) for detail in status.details)
    return found
