"""
The settings of a whole system on one machine: the environment before `.env` before what is made up here.

A provider whose key is given without an address is the real one; without a key, the sandbox stands in for it. Secrets
that have to be made up are made once and live in the system's folder, readable by its owner only.
"""

from __future__ import annotations

import base64
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dotenv import dotenv_values

#: Process → (module, port of its own, port of its operations).
PROCESSES = {
    "sandbox": ("sandbox", 8090, None),
    "payments": ("services.payments", 50051, 9101),
    "email": ("services.email", 50052, 9102),
    "sms": ("services.sms", 50053, 9103),
    "gateway": ("gateway", 8080, 8081),
}
#: Setting → port, of everything that listens.
LISTENERS = {
    **{f"{name.upper()}_LISTEN": port for name, (_, port, _) in PROCESSES.items()},
    **{f"{name.upper()}_OPERATIONS_LISTEN": port for name, (_, _, port) in PROCESSES.items() if port},
    "GATEWAY_ADMIN_LISTEN": 50054,
}

#: Provider → (the key that makes it real, its address, what the sandbox takes for keys).
PROVIDERS: dict[str, tuple[str, str, Mapping[str, str]]] = {
    "stripe": ("STRIPE_SECRET_KEY", "STRIPE_API_BASE", {"STRIPE_SECRET_KEY": "sk_test_sandbox"}),
    "sendgrid": ("SENDGRID_API_KEY", "SENDGRID_API_BASE", {"SENDGRID_API_KEY": "SG.sandbox"}),
    "twilio": (
        "TWILIO_ACCOUNT_SID",
        "TWILIO_API_BASE",
        {"TWILIO_ACCOUNT_SID": "AC" + "0" * 32, "TWILIO_PHONE_NUMBER": "+15005550006"},
    ),
}


def merged(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    """Merge the environment over `.env`; None keeps `.env` out, as everything does that must not meet real keys."""
    written = dotenv_values(dotenv) if dotenv is not None and dotenv.exists() else {}
    return {**{name: value for name, value in written.items() if value}, **environ}


def complete(given: Mapping[str, str], folder: Path, *, free_ports: bool = False) -> dict[str, str]:
    """Fill in every setting that is not given."""
    settings = dict(given)

    def default(name: str, value: str | Callable[[], str]) -> None:
        if not settings.get(name) and not settings.get(f"{name}_FILE"):
            settings[name] = value if isinstance(value, str) else value()

    for name, port in LISTENERS.items():
        default(name, lambda port=port: listen(port, free=free_ports))  # type: ignore[misc]
    for process in ("payments", "email", "sms", "gateway"):
        default(f"{process.upper()}_DATABASE_URL", f"sqlite:///{folder}/{process}.db")
    for process in ("payments", "email", "sms"):
        default(f"{process.upper()}_TARGET", settings[f"{process.upper()}_LISTEN"])
        certificate = settings.get(f"{process.upper()}_TLS_CERT", "")
        scheme = "https" if certificate else "http"
        default(f"{process.upper()}_OPERATIONS", f"{scheme}://{settings[f'{process.upper()}_OPERATIONS_LISTEN']}")
        default(f"{process.upper()}_TARGET_CA", certificate)  # a certificate is its own authority
    gateway, sandbox = f"http://{settings['GATEWAY_LISTEN']}", f"http://{settings['SANDBOX_LISTEN']}"
    default("SANDBOX_DATABASE", f"{folder}/sandbox.db")
    default("SANDBOX_WEBHOOK_TARGET", gateway)
    default("PUBLIC_URL", gateway)
    default("FROM_EMAIL", "clinica@example.com")
    for key, base, stand_ins in PROVIDERS.values():
        if not settings.get(key) and not settings.get(f"{key}_FILE"):
            default(base, sandbox)
            for name, value in stand_ins.items():
                default(name, value)
    for name, value in made_up(folder).items():
        default(name, value)
    return settings


#: Which of this process' ports to look at next.
numbers = itertools.count()


def listen(port: int, *, free: bool) -> str:
    if not free:
        return f"127.0.0.1:{port}"
    # Below the range from which systems take the ports of outgoing connections, and in a hundred of this process' own:
    # it stays free until it is used.
    ours = 20_000 + os.getpid() % 120 * 100
    for candidate in numbers:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", ours + candidate % 100))
            except OSError:
                continue
            return f"127.0.0.1:{ours + candidate % 100}"
    raise AssertionError("counting does not end")


def made_up(folder: Path) -> dict[str, str]:
    """The secrets a system needs and nobody gave it: made at the first start, the same ever after."""
    file = folder / "secrets.env"
    known = {name: value or "" for name, value in dotenv_values(file).items()} if file.exists() else {}
    made = {**new_secrets(), **known}
    if made != known:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f"secrets.{os.getpid()}"
        write_private(part, "".join(f"{name}={value}\n" for name, value in made.items()))
        part.rename(file)
    file.chmod(0o600)
    return made


def write_private(file: Path, text: str) -> None:
    """Write what nobody but the owner may read."""
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text)


def new_secrets() -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "STRIPE_WEBHOOK_SECRET": f"whsec_{secrets.token_hex(24)}",
        "TWILIO_AUTH_TOKEN": secrets.token_hex(16),
        "SMS_PEPPER": secrets.token_hex(32),
        **{f"{process}_FINGERPRINT_KEYS": secrets.token_hex(32) for process in ("PAYMENTS", "EMAIL", "SMS")},
        "SANDBOX_SENDGRID_PRIVATE_KEY": base64.b64encode(private).decode(),
        "SENDGRID_WEBHOOK_PUBLIC_KEY": base64.b64encode(public).decode(),
    }


def sandboxed(settings: Mapping[str, str]) -> bool:
    """Whether all three providers are the sandbox: only then may a demo charge, mail and text."""
    sandbox = f"http://{settings['SANDBOX_LISTEN']}"
    return all(settings.get(base) == sandbox for _, base, _ in PROVIDERS.values())
