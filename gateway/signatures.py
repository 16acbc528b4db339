"""
Verify that a webhook comes from its provider, over the bytes as received.

Each function returns None for a valid signature and raises BadSignature for any other input. Several secrets are valid
at once, so that secrets can rotate.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

#: Seconds by which a provider's timestamp may differ from our clock.
TOLERANCE = 300.0
PORTS = {"http": 80, "https": 443}


class BadSignature(Exception):  # noqa: N818 - a refusal, no error of ours
    """A refused webhook. `reason` is a metric label. Neither it nor the message quotes the request."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def verify_stripe(header: bytes, body: bytes, secrets: Sequence[bytes], now: float) -> None:
    """Verify `t=…,v1=…,v1=…`: while a secret is rotated, Stripe signs with both."""
    pairs = [part.strip().partition(b"=")[::2] for part in header.split(b",")]
    moments = [value for name, value in pairs if name == b"t"]
    offered = [value for name, value in pairs if name == b"v1"]
    if len(moments) != 1 or not offered:
        raise BadSignature(
            "SIGNATURE_MALFORMED" if header else "SIGNATURE_MISSING",
            "the Stripe-Signature header must have the form t=…,v1=…",
        )
    require_fresh(moments[0], now, TOLERANCE)
    signed = moments[0] + b"." + body
    expected = [hmac.digest(secret, signed, "sha256").hex().encode() for secret in secrets]
    require_match(expected, offered)


def verify_sendgrid(
    signature: bytes,
    moment: bytes,
    body: bytes,
    *,
    keys: Sequence[EllipticCurvePublicKey],
    now: float,
    window: float,
) -> None:
    """Verify ECDSA over timestamp and body. One event has many valid signatures, so they do not identify it."""
    if not signature:
        raise BadSignature("SIGNATURE_MISSING", "the signature header must be present")
    require_fresh(moment, now, window)
    try:
        der = base64.b64decode(signature, validate=True)
    except binascii.Error as error:
        raise BadSignature("SIGNATURE_MALFORMED", "the signature must be base64") from error
    if not any(_verifies(key, der, moment + body) for key in keys):
        raise BadSignature("SIGNATURE_MISMATCH", "the signature must match one of SENDGRID_WEBHOOK_PUBLIC_KEY")


def _verifies(key: EllipticCurvePublicKey, der: bytes, signed: bytes) -> bool:
    try:
        key.verify(der, signed, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


class TwilioSecrets(NamedTuple):
    tokens: Sequence[bytes]
    #: Keyed by Twilio's id of the key.
    shared_keys: Mapping[str, bytes]


def verify_twilio(
    signature: bytes, settings: bytes, url: str, form: Sequence[tuple[str, str]], secrets: TwilioSecrets
) -> None:
    """
    Verify an HMAC over the public address and the sorted form, blank values included. It contains no timestamp.

    `settings` is the header `key=…,algorithm=HMAC_SHA256` of a shared key; without it an auth token signs with SHA-1.
    """
    if not signature:
        raise BadSignature("SIGNATURE_MISSING", "the signature header must be present")
    algorithm, keys = (hashlib.sha256, _shared(settings, secrets)) if settings else (hashlib.sha1, secrets.tokens)
    parameters = "".join(name + value for name, value in sorted(set(form)))
    expected = [
        base64.b64encode(hmac.new(key, (address + parameters).encode(), algorithm).digest())
        for key in keys
        for address in spellings(url)
    ]
    require_match(expected, [signature])


def _shared(settings: bytes, secrets: TwilioSecrets) -> Sequence[bytes]:
    named = {name.strip(): value.strip() for name, _, value in (each.partition(b"=") for each in settings.split(b","))}
    if named.get(b"algorithm") != b"HMAC_SHA256":
        raise BadSignature("ALGORITHM_UNKNOWN", "the algorithm must be HMAC_SHA256")
    key = secrets.shared_keys.get(named.get(b"key", b"").decode("latin-1"))
    if key is None:
        raise BadSignature("KEY_UNKNOWN", "the key must be one of TWILIO_SHARED_KEYS")
    return [key]


def verify_body_hash(hashes: Sequence[str], body: bytes) -> None:
    """Verify `bodySHA256` of a signed address, which covers a body that is not a form."""
    if len(hashes) != 1:
        raise BadSignature("BODY_NOT_SIGNED", "the address must name the body's SHA-256 once")
    if not hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), hashes[0].lower().encode()):
        raise BadSignature("BODY_MISMATCH", "the body must match the signed bodySHA256")


def spellings(url: str) -> set[str]:
    """Return the address with and without its port, since Twilio signs either."""
    parts = urlsplit(url)
    authority, _, rest = url.removeprefix(f"{parts.scheme}://").partition("/")
    host = authority.removesuffix(f":{parts.port}")
    return {f"{parts.scheme}://{shown}/{rest}" for shown in (host, f"{host}:{parts.port or PORTS[parts.scheme]}")}


def require_fresh(moment: bytes, now: float, window: float) -> None:
    if not moment.isdigit() or len(moment) > 12:
        raise BadSignature("TIMESTAMP_MALFORMED", "the timestamp must be a number of seconds")
    age = now - int(moment)
    if age > window:
        raise BadSignature("TIMESTAMP_TOO_OLD", "the timestamp is too old")
    if age < -TOLERANCE:
        raise BadSignature("TIMESTAMP_IN_FUTURE", "the timestamp must not be in the future")


def require_match(expected: Sequence[bytes], offered: Sequence[bytes]) -> None:
    # Compare against every secret so that timing does not reveal which one matched.
    if True not in [hmac.compare_digest(ours, theirs) for ours in expected for theirs in offered]:
        raise BadSignature("SIGNATURE_MISMATCH", "the signature must match one of the configured secrets")
