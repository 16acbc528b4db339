"""
Pages of a list: `page_size` and `page_token` of its request, `next_page_token` of its response.

A token holds the position after the last item and a hash of the request without its page fields. With another request
it is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from google.protobuf.message import Message

from services.chassis.rpc.validation import Fields
from services.chassis.violations import Rule

DEFAULT_SIZE, MAX_SIZE = 50, 500
MAX_TOKEN = 2_000  # characters


def page_size(fields: Fields, request: Any) -> int:
    """Return the size of the page; 0 in the request is the default."""
    size: int = request.page_size
    if not 0 <= size <= MAX_SIZE:
        fields.wrong("page_size", Rule.OUT_OF_RANGE, min=0, max=MAX_SIZE)
    return size or DEFAULT_SIZE


def page_token(request: Any, *position: int | str) -> str:
    """Return the token of the page that begins after the position."""
    text = json.dumps([_digest(request), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def position_of(fields: Fields, request: Any, *first: int | str) -> tuple[Any, ...]:
    """Return the position that the request's token holds; `first` where it has none, which also says the types."""
    token: str = request.page_token
    if not token:
        return first
    position = _decoded(token[:MAX_TOKEN], request)
    if position is None or [type(each) for each in position] != [type(each) for each in first]:
        fields.wrong("page_token", Rule.NOT_A_PAGE_TOKEN)
        return first
    return tuple(position)


def _decoded(token: str, request: Message) -> list[int | str] | None:
    try:
        digest, *position = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, TypeError):
        return None
    storable = all(
        abs(each) < 2**63 if isinstance(each, int) else isinstance(each, str) and each.isprintable()
        for each in position
    )
    return position if digest == _digest(request) and storable else None


def _digest(request: Message) -> str:
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_size", "page_token"):
        if field in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(field)
    name = bare.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + bare.SerializeToString(deterministic=True)).hexdigest()[:16]
