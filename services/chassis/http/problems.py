"""Errors as RFC 9457 problems, with a stable English `reason` and a `message` in pt-BR."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any

from grpc import StatusCode
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from services.chassis import context, errors
from services.chassis.errors import PORTUGUESE, ServiceError, localized

STATUSES = {
    StatusCode.INVALID_ARGUMENT: 422,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.FAILED_PRECONDITION: 422,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.INTERNAL: 500,
}
#: Codes of requests that may be repeated with the same key.
RETRYABLE = {StatusCode.ABORTED, StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
#: Sentences for people, by status, for errors that only HTTP has.
SENTENCES = {
    400: "O pedido está malformado.",
    403: "Sem permissão para esta operação.",
    404: "Este endereço não existe.",
    405: "Este endereço não aceita este método.",
    408: "O pedido demorou demais para chegar. Tente de novo.",
    413: "O pedido é grande demais.",
    421: "Este endereço não é atendido aqui.",
    431: "O cabeçalho do pedido é grande demais.",
    503: "O serviço está ocupado no momento. Tente de novo em instantes.",
}


class Refusal(HTTPException):
    """An error that only HTTP has: a body too large, a wrong signature."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


def status_of(error: ServiceError) -> int:
    return STATUSES[error.code]


def retry_after(error: ServiceError) -> int | None:
    """Return whole seconds for Retry-After; None where a repetition changes nothing."""
    return ceil(errors.retry_after(error) or 1.0) if error.code in RETRYABLE else None


def problem(error: ServiceError) -> dict[str, Any]:
    """Return the problem of an error. The paths in `errors` are those of the contract."""
    document = _titled(status_of(error), error.reason, error.message, localized(error))
    if error.violations:
        document["errors"] = [
            {"field": field, "message": description, "reason": reason, "localized_message": translated}
            for field, description, reason, translated in error.violations
        ]
    if error.metadata:
        document["metadata"] = error.metadata
    return document


def _titled(status: int, reason: str, detail: str, sentence: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
        "message": sentence,
        "correlation_id": context.correlation_id.get(),
    }


class ProblemResponse(JSONResponse):
    media_type = "application/problem+json"

    def __init__(self, problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem, problem["status"], headers)
        self._reason = problem["reason"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["reason"] = self._reason  # for the access log
        await super().__call__(scope, receive, send)


def answer(error: Exception) -> ProblemResponse:
    """
    Return the problem of an exception. A bug becomes INTERNAL without its text.

    ROUTE_NOT_FOUND means that no route has the path. NOT_FOUND is about a resource, on a path that exists.
    """
    if isinstance(error, HTTPException):
        reason = error.reason if isinstance(error, Refusal) else _reason(error.status_code)
        sentence = SENTENCES.get(error.status_code, PORTUGUESE["FAILED_PRECONDITION"])
        return ProblemResponse(_titled(error.status_code, reason, error.detail, sentence), error.headers)
    if not isinstance(error, ServiceError) or error.code is StatusCode.INTERNAL:
        return ProblemResponse(_titled(500, "INTERNAL", "internal error", PORTUGUESE["INTERNAL"]))
    headers = {"www-authenticate": "Bearer"} if error.code is StatusCode.UNAUTHENTICATED else {}
    if (seconds := retry_after(error)) is not None:
        headers["retry-after"] = str(seconds)
    return ProblemResponse(problem(error), headers)


def _reason(status: int) -> str:
    return "ROUTE_NOT_FOUND" if status == 404 else HTTPStatus(status).name
