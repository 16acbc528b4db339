"""
What a key's first request asked for, kept so that a repetition can be told from another request.

Parsed fields are kept, not bytes, and a field at its default is left out: one that is added next year does not make old
keys differ. Each value is a keyed hash, so that what was erased cannot be read back from here.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping

from services.chassis.errors import IdempotencyReuse


def fingerprint(fields: Mapping[str, object], secret: bytes = b"topsmile") -> str:
    """Hash each field by its path. Values are compared by `repr`: pass values, not objects with an identity."""
    kept = {
        path: hmac.new(secret, repr(value).encode(), hashlib.sha256).hexdigest()[:24]
        for path, value in sorted(fields.items())
        if value
    }
    return json.dumps(kept, separators=(",", ":"))


def differing(stored: str, asked: str) -> list[str]:
    before, now = json.loads(stored), json.loads(asked)
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def same_request(stored: str, asked: str) -> None:
    """Raise IdempotencyReuse, naming the fields, unless both fingerprints are of one request."""
    if fields := differing(stored, asked):
        raise IdempotencyReuse(fields)
