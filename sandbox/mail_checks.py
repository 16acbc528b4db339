"""What SendGrid refuses to take for a mail."""

import base64
import binascii
import re
import time
from collections.abc import Iterator
from typing import Any

from sandbox.state import Json

ADDRESS = re.compile(r"[^@\s<>,;\"]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
#: A method is taken, a charset or a line break is not.
MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+(?:; ?method=[A-Z]+)?")
RESERVED_HEADERS = {"x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "content-transfer-encoding"}
RESERVED_HEADERS |= {"to", "from", "subject", "reply-to", "cc", "bcc"}
KINDS = ("to", "cc", "bcc")
RECIPIENTS_AT_MOST = 1000
CUSTOM_ARGS_AT_MOST = 10_000


class MailError(Exception):
    def __init__(self, message: str, field: str | None, mail: Any) -> None:
        super().__init__(message)
        self.field, self.mail = field, mail


def checked(mail: Any) -> Json:
    if not isinstance(mail, dict):
        raise MailError("Bad Request", None, mail)
    for field, message in problems(mail):
        raise MailError(message, field, mail)
    return mail


SHAPES: dict[str, type] = {
    "subject": str,
    "custom_args": dict,
    "headers": dict,
    "mail_settings": dict,
    "attachments": list,
    "categories": list,
}


def problems(mail: Json) -> Iterator[tuple[str, str]]:
    """Each with its field; what follows the first one may lean on what that one says is not so."""
    for field, shape in SHAPES.items():
        if mail.get(field) is not None and not isinstance(mail[field], shape):
            yield (
                field,
                f"This must be {'an object' if shape is dict else 'an array' if shape is list else 'a string'}.",
            )
    yield from _address(mail.get("from"), "from", "The from object must be provided for every email send.")
    if mail.get("reply_to") is not None:
        yield from _address(mail["reply_to"], "reply_to", "The reply_to address must be valid.")
    yield from _personalizations(mail)
    yield from _content(mail)
    yield from _attachments(mail.get("attachments") or [])
    yield from _limits(mail)


def _address(value: Any, field: str, absent: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict) or not value.get("email"):
        yield f"{field}.email", absent
    elif not isinstance(value["email"], str) or not ADDRESS.fullmatch(value["email"]):
        yield f"{field}.email", "Does not contain a valid address."


def _personalizations(mail: Json) -> Iterator[tuple[str, str]]:
    parts = mail.get("personalizations")
    if not isinstance(parts, list) or not parts:
        yield "personalizations", "The personalizations field is required and must have at least one personalization."
        return
    total = 0
    for index, part in enumerate(parts):
        field = f"personalizations.{index}"
        if not isinstance(part, dict) or not isinstance(part.get("to"), list) or not part["to"]:
            yield (
                f"{field}.to",
                "The to array is required for all personalization objects, with at least one recipient.",
            )
        if not isinstance(part.get("custom_args") or {}, dict):
            yield f"{field}.custom_args", "This must be an object."
        yield from _recipients(part, field)
        total += sum(len(part.get(kind) or []) for kind in KINDS)
        if not (part.get("subject") or mail.get("subject") or mail.get("template_id")):
            yield "subject", "The subject is required. Set it for the mail or for each personalization."
        arguments = {**(mail.get("custom_args") or {}), **(part.get("custom_args") or {})}
        yield from _custom_args(arguments, f"{field}.custom_args")
    if total > RECIPIENTS_AT_MOST:
        yield "personalizations", f"A mail goes to at most {RECIPIENTS_AT_MOST} recipients."


def _recipients(part: Json, field: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for kind in KINDS:
        recipients = part.get(kind) or []
        if not isinstance(recipients, list):
            yield f"{field}.{kind}", "This must be an array."
        for place, recipient in enumerate(recipients):
            yield from _address(recipient, f"{field}.{kind}.{place}", "The email address of a recipient is required.")
            if recipient["email"].lower() in seen:
                yield field, "Each email address in the personalization block should be unique between to, cc, and bcc."
            seen.add(recipient["email"].lower())


def _custom_args(arguments: Json, field: str) -> Iterator[tuple[str, str]]:
    for name, value in arguments.items():
        if not isinstance(value, str):
            yield f"{field}.{name}", "Custom arguments must be strings."
    if sum(len(name) + len(str(value)) for name, value in arguments.items()) > CUSTOM_ARGS_AT_MOST:
        yield field, f"Custom arguments may be {CUSTOM_ARGS_AT_MOST} bytes long at most."


def _content(mail: Json) -> Iterator[tuple[str, str]]:
    content = mail.get("content")
    if not content and mail.get("template_id"):
        return
    if not isinstance(content, list) or not content:
        yield "content", "Unless a valid template_id is provided, the content parameter is required."
        return
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not part.get("type") or not part.get("value"):
            yield f"content.{index}", "The content value and type must be strings of at least one character."
            return
        yield from _media_type(part["type"], f"content.{index}.type")
    kinds = [part["type"] for part in content]
    if "text/plain" in kinds[1:]:
        yield "content", "If present, text/plain must be first, followed by text/html, then any other part."


def _attachments(attachments: list[Any]) -> Iterator[tuple[str, str]]:
    for index, attachment in enumerate(attachments):
        field = f"attachments.{index}"
        if not isinstance(attachment, dict) or not attachment.get("filename") or not attachment.get("content"):
            yield field, "An attachment needs a filename and a content."
            return
        if attachment.get("type"):
            yield from _media_type(attachment["type"], f"{field}.type")
        try:
            base64.b64decode(attachment["content"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            yield f"{field}.content", "The attachment content must be base64 encoded."


def _media_type(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, str) or not MEDIA_TYPE.fullmatch(value):
        yield field, "The type cannot contain ';', or CRLF."


def _limits(mail: Json) -> Iterator[tuple[str, str]]:
    if len(mail.get("categories") or []) > 10:
        yield "categories", "A mail has at most 10 categories."
    for name in mail.get("headers") or {}:
        if name.lower() in RESERVED_HEADERS:
            yield f"headers.{name}", "This header is set by the service itself."
    send_at = mail.get("send_at")
    if send_at is not None and (not isinstance(send_at, int) or send_at > time.time() + 72 * 3600):
        yield "send_at", "A mail cannot be scheduled more than 72 hours ahead."
