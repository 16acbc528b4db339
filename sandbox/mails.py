"""A mail as its first recipient reads it."""

from sandbox.state import Json


def part(mail: Json, kind: str) -> str | None:
    return next((content["value"] for content in mail.get("content") or [] if content["type"] == kind), None)


def shown(kept: Json) -> Json:
    mail = kept["mail"]
    first = mail["personalizations"][0]
    return {
        **kept,
        "to": [recipient["email"] for recipient in first["to"]],
        "from": mail["from"]["email"],
        "subject": first.get("subject") or mail.get("subject") or "",
        "text": part(mail, "text/plain"),
        "html": part(mail, "text/html"),
    }
