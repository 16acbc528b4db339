"""One request as a provider's API sees it, and its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Items = list[tuple[str, str]]


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    #: The address the caller used: links in answers lead back to it.
    origin: str
    headers: Mapping[str, str]
    query: Items
    form: Items
    body: bytes
    ids: Mapping[str, str]  #: what stands in the path's places


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    outcome: str = ""  #: for the ledger; empty: by the status
    object_id: str | None = None
    idempotency_key: str | None = None
    request: Any = None  #: what was understood, for the ledger
    #: Seconds until the answer leaves, and whether it leaves at all: some magic recipients ask for it.
    hold: float = 0.0
    silent: bool = False


def as_json(status: int, content: object, **more: Any) -> Answer:
    return Answer(status, json.dumps(content, indent=2, ensure_ascii=False).encode(), **more)
