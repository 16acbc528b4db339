"""
Fingerprints of requests, which tell a repeated request from another one under the same idempotency key.

A fingerprint holds parsed fields and omits defaults, so that a field added later does not change old fingerprints.
Values are keyed hashes: a plain hash of a phone number or a CPF could be found by trying all numbers.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property

from pydantic import SecretStr

from services.chassis.errors import AlreadyExists
from services.chassis.violations import Rule


class Key:
    """A secret, and the short name that its fingerprints carry. The name does not reveal the secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self.name = hmac.new(self._secret, b"name", hashlib.sha256).hexdigest()[:8]

    def hash(self, fields: Mapping[str, object]) -> dict[str, str]:
        return {
            path: hmac.new(self._secret, repr(value).encode(), hashlib.sha256).hexdigest()[:24]
            for path, value in sorted(fields.items())
            if value
        }


class Fingerprint:
    """The fields of one request. Values are compared by `repr`, so pass plain values."""

    def __init__(self, keys: Sequence[Key], fields: Mapping[str, object]) -> None:
        self._keys = keys
        self._fields = fields

    @cached_property
    def stored(self) -> str:
        """Return the text to store, `key name:{path: hash}`, under the first key."""
        hashes = self._keys[0].hash(self._fields)
        return f"{self._keys[0].name}:{json.dumps(hashes, separators=(',', ':'))}"

    def differing(self, stored: str) -> list[str]:
        """
        Return the fields that differ from those of a stored fingerprint.

        Return none where its key is no longer known: a caller whose repeated request is refused takes a new key, and
        charges or sends twice.
        """
        if stored == self.stored:
            return []
        name, _, text = stored.partition(":")
        key = next((key for key in self._keys if key.name == name), None)
        if key is None:
            return []
        before, now = json.loads(text), key.hash(self._fields)
        return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))

    def check(self, stored: str) -> None:
        """Raise AlreadyExists, with the fields that differ, unless the stored fingerprint is of the same request."""
        if fields := self.differing(stored):
            raise AlreadyExists(
                f"this idempotency_key was used for another request; different: {', '.join(fields)}",
                reason="IDEMPOTENCY_KEY_REUSED",
                violations=[Rule.KEY_REUSED.at(field) for field in fields],
            )


class Fingerprints:
    """
    The keys of one installation: the first makes new fingerprints, all recognise stored ones.

    Without keys, this process makes a random one and cannot compare fingerprints of other processes.
    """

    def __init__(self, keys: Sequence[SecretStr] = ()) -> None:
        self._keys = [Key(key.get_secret_value()) for key in keys] or [Key(secrets.token_hex(32))]

    def __call__(self, fields: Mapping[str, object]) -> Fingerprint:
        return Fingerprint(self._keys, fields)
