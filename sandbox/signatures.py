"""How each provider signs what it sends, and the keys it signs with."""

import base64
import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Sequence
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sandbox.settings import Settings, load_ec_key
from sandbox.state import secret


class Keys:
    """The settings' keys; those not set are made up once and kept in the state file."""

    def __init__(self, db: sqlite3.Connection, settings: Settings) -> None:
        made_up = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
        )
        self._made_up: dict[str, str] = {}
        self.stripe_secret = settings.stripe_webhook_secret or self._own(db, "stripe_webhook_secret", "whsec_")
        self.twilio_tokens: Sequence[str] = settings.twilio_auth_tokens
        self.twilio_token = (self.twilio_tokens or [self._own(db, "twilio_auth_token", "")])[0]
        self._sendgrid = load_ec_key(
            settings.sendgrid_private_key or secret(db, "sendgrid_private_key", base64.b64encode(made_up).decode())
        )

    def _own(self, db: sqlite3.Connection, name: str, prefix: str) -> str:
        self._made_up[name] = secret(db, name, prefix + secrets.token_hex(16))
        return self._made_up[name]

    def shown(self) -> dict[str, str]:
        """What a receiver has to know: public keys, and secrets that only this sandbox knows so far."""
        public = self._sendgrid.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"sendgrid_public_key": base64.b64encode(public).decode(), **self._made_up}

    def sign_stripe(self, body: bytes, seconds: int) -> dict[str, str]:
        digest = hmac.new(self.stripe_secret.encode(), b"%d." % seconds + body, hashlib.sha256).hexdigest()
        return {"Stripe-Signature": f"t={seconds},v1={digest}"}

    def sign_sendgrid(self, body: bytes, seconds: int) -> dict[str, str]:
        signature = self._sendgrid.sign(str(seconds).encode() + body, ec.ECDSA(hashes.SHA256()))
        return {
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
            "X-Twilio-Email-Event-Webhook-Timestamp": str(seconds),
        }

    def sign_twilio(self, url: str, body: bytes) -> dict[str, str]:
        fields = sorted(parse_qsl(body.decode(), keep_blank_values=True))
        signed = url + "".join(name + value for name, value in fields)
        digest = hmac.new(self.twilio_token.encode(), signed.encode(), hashlib.sha1).digest()
        return {"X-Twilio-Signature": base64.b64encode(digest).decode()}
