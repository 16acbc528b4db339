"""
The errors of this system: their gRPC status, their reason, and what a caller may conclude.

* ServiceError
  x InvalidRequest           INVALID_ARGUMENT     the request is wrong; every wrong field is named
  x NotFound                 NOT_FOUND            there is no such payment, mail or text
  x AlreadyExists            ALREADY_EXISTS       there is one, or the key was used for another request
  x InProgress               ABORTED              the same request is running
  x Rejected                 FAILED_PRECONDITION  the request will never succeed
  x Throttled                RESOURCE_EXHAUSTED   repeat it after retry_after
  x Unavailable              UNAVAILABLE          repeat it with the same key
    x BreakerOpen                                 the provider was not called
  x Unauthenticated          UNAUTHENTICATED      the caller is not known
  x PermissionDenied         PERMISSION_DENIED    the caller lacks a scope
  x OutOfRange               OUT_OF_RANGE         the cursor is older than the change log
  x DeadlineExceeded         DEADLINE_EXCEEDED    nothing was done, unless the reason is OUTCOME_UNKNOWN
  x ExternalServiceError (service, original)      a provider caused it; each also is one of the above
    x NotSent                UNAVAILABLE          no byte of the request was sent
    x OutcomeUnknown         UNAVAILABLE          the provider may have acted
    x CredentialsRefused     UNAVAILABLE          our key or account is wrong, not the request
    x ProviderThrottled      RESOURCE_EXHAUSTED   the provider answered 429
    x ProviderRefusedInput   INVALID_ARGUMENT     the provider found a fault in the request
    x ProviderRejected       FAILED_PRECONDITION  the provider declined it
    x ProviderNotFound       NOT_FOUND            the provider does not know the object
    x ProviderBusy           ABORTED              the provider still works on the same key
    x ProviderKeyReused      ALREADY_EXISTS       the provider knows the key with another request

`rpc/error_details.py` carries them over gRPC, `http/problems.py` over HTTP.
"""
# ruff: noqa: N818 - the names say what happened; half of them are answers rather than failures

from collections.abc import Mapping, Sequence
from math import ceil
from typing import ClassVar, TypedDict, Unpack

import grpc

from services.chassis.violations import Violation as Violation  # noqa: PLC0414 - errors carry violations

#: Seconds until a caller repeats a request whose outcome is unknown. Inside, each layer has its own waits.
OUTCOME_UNKNOWN_DELAY = 5.0


class ErrorFields(TypedDict, total=False):
    """What any error may carry besides its message and violations."""

    reason: str | None
    retry_after: float | None
    localized: str | None
    metadata: Mapping[str, str] | None


class ServiceError(Exception):
    """
    The base of all errors. Raise a subclass: an unnamed error is a bug, and INTERNAL.

    `message` is for developers and crosses the wire: it must hold no address, number, body or token.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"
    default_retry_after: ClassVar[float | None] = None  #: Seconds, where the raiser gives none.
    definite: bool = True  #: Nothing was done, for certain.
    provider_fault: bool | None = False  #: A failure for the breaker; None: it says nothing about the provider.
    retryable: bool = False  #: Safe to repeat at once: nothing was sent.

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
        if self.reason == "OUTCOME_UNKNOWN":
            self.definite = False
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.localized = localized
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)


class InvalidRequest(ServiceError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], **fields: Unpack[ErrorFields]) -> None:
        message = "; ".join(f"{each.field}: {each.description}" for each in violations)
        super().__init__(message, violations=violations, **fields)


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


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


class ExternalServiceError(ServiceError):
    """A provider's error. `service` crosses the wire; `original` stays in this process."""

    def __init__(
        self,
        service: str,
        original: object,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        **fields: Unpack[ErrorFields],
    ) -> None:
        ServiceError.__init__(self, message, violations=violations, **fields)  # the other bases take other arguments
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
    kept: bool = False  #: The provider stored this response and will repeat it for the same key.


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


# Sentences for people, by reason; by status code where the reason has none.
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


def retry_after(error: ServiceError) -> float | None:
    """Return the seconds after which the caller may repeat the request; None where no time is known."""
    unknown = error.retry_after is None and error.reason == "OUTCOME_UNKNOWN"
    return OUTCOME_UNKNOWN_DELAY if unknown else error.retry_after


def localized(error: ServiceError) -> str:
    """Return a sentence for people, in pt-BR."""
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
