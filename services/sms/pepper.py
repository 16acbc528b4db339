"""What the secret SMS_PEPPER keeps: codes that wait."""

import base64
import hmac

from cryptography.fernet import Fernet


class Pepper:
    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(hmac.digest(secret.encode(), b"waiting codes", "sha256")))

    def seal(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def unseal(self, sealed: str) -> str:
        return self._fernet.decrypt(sealed.encode()).decode()
