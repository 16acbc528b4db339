"""How the providers sign, in the fewest lines and sharing none with what verifies."""

import base64
import hashlib
import hmac
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def stripe(body: bytes, secret: str, moment: int) -> str:
    return hmac.new(secret.encode(), b"%d." % moment + body, hashlib.sha256).hexdigest()


def stripe_header(body: bytes, secret: str, moment: int) -> dict[str, str]:
    return {"Stripe-Signature": f"t={moment},v1={stripe(body, secret, moment)},v0=abc"}


class SendGridKey:
    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        der = self._private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.public = base64.b64encode(der).decode()

    def header(self, body: bytes, moment: int) -> dict[str, str]:
        signature = self._private.sign(str(moment).encode() + body, ec.ECDSA(hashes.SHA256()))
        return {
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
            "X-Twilio-Email-Event-Webhook-Timestamp": str(moment),
        }


def twilio_header(url: str, body: bytes, token: str) -> dict[str, str]:
    pairs = sorted(parse_qsl(body.decode(), keep_blank_values=True))
    signed = url + "".join(f"{name}{value}" for name, value in pairs)
    digest = hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()
    return {
        "X-Twilio-Signature": base64.b64encode(digest).decode(),
        "Content-Type": "application/x-www-form-urlencoded",
    }


def twilio_shared(url: str, body: bytes, key: str, secret: str, algorithm: str = "HMAC_SHA256") -> tuple[bytes, bytes]:
    """The signature under a shared key, and the header that names the key."""
    pairs = sorted(parse_qsl(body.decode(), keep_blank_values=True))
    signed = url + "".join(f"{name}{value}" for name, value in pairs)
    made = hmac.new(secret.encode(), signed.encode(), algorithm.removeprefix("HMAC_").lower()).digest()
    return base64.b64encode(made), f"key={key},algorithm={algorithm}".encode()


def twilio_json(url: str, body: bytes, token: str) -> tuple[str, dict[str, str]]:
    """The address with the body's hash in it, and the headers."""
    url += f"{'&' if '?' in url else '?'}bodySHA256={hashlib.sha256(body).hexdigest()}"
    return url, twilio_header(url, b"", token) | {"Content-Type": "application/json"}
