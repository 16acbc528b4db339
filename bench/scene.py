"""What the parts share: a folder, a PostgreSQL, the providers' double, and our processes on free ports."""

from __future__ import annotations

import base64
import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.running import Running, module, running
from tests.postgres_cluster import Cluster, cluster

WEBHOOK_SECRET = "whsec_bench"
CONCURRENCY = 32


class Scene:
    """Everything in it ends with it."""

    def __init__(self, folder: Path, seconds: float = 60.0) -> None:
        self.folder = folder
        self.seconds = seconds  #: How long what is measured by time is measured.
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @cached_property
    def postgres(self) -> Cluster:
        return self._stack.enter_context(cluster(fsync=True))

    @cached_property
    def providers(self) -> Running:
        """Stripe and Twilio that answer at once."""
        return self._stack.enter_context(running(module("bench.peers.providers"), self.log("providers")))

    @cached_property
    def postmaster(self) -> int:
        """The pid of PostgreSQL's first process, whose descendants are its others."""
        mark = ["-p", str(self.postgres.port)]
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                words = file.read_bytes().decode(errors="replace").split("\0")
                if words[0].endswith("postgres") and words[3:5] == mark:
                    return int(file.parent.name)
        raise LookupError("PostgreSQL has no process")

    @property
    def providers_url(self) -> str:
        return f"http://{self.providers.addresses['http']}"

    def requests(self) -> int:
        """How many requests the providers have taken."""
        with urllib.request.urlopen(f"{self.providers_url}/count") as answer:
            return int(json.load(answer)["count"])

    def log(self, name: str) -> Path:
        return self.folder / f"{name}-{uuid4().hex[:6]}.log"

    def sqlite(self) -> str:
        return f"sqlite:///{self.folder}/{uuid4().hex}.db"

    @contextmanager
    def ours(self, name: str, database: str = "", **settings: str) -> Iterator[Running]:
        process = name.rpartition(".")[2].upper()
        fixed = {
            f"{process}_LISTEN": "127.0.0.1:0",
            f"{process}_OPERATIONS_LISTEN": "127.0.0.1:0",
            f"{process}_DATABASE_URL": database or self.sqlite(),
        }
        with running(module(name), self.log(name), **{**SETTINGS[name], **fixed, **settings}) as process_:
            yield process_


def nobody() -> str:
    """An address of loopback where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def public_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(form).decode()


NOBODY = nobody()
#: What each of our processes needs in order to start; paces and addresses that a part does not set let nothing through.
SETTINGS: dict[str, dict[str, str]] = {
    "gateway": {
        "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "SENDGRID_WEBHOOK_PUBLIC_KEY": public_key(),
        "TWILIO_AUTH_TOKEN": "token",
        "PAYMENTS_TARGET": NOBODY,
        "EMAIL_TARGET": NOBODY,
        "SMS_TARGET": NOBODY,
    },
    "services.sms": {
        "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
        "TWILIO_AUTH_TOKEN": "token",
        "TWILIO_PHONE_NUMBER": "+15005550006",
        "TWILIO_API_BASE": f"http://{NOBODY}",
        "TWILIO_PER_SECOND": "100000",
        "SMS_PEPPER": "a pepper of sixteen",
    },
    "services.payments": {
        "STRIPE_SECRET_KEY": "sk_test_bench",
        "STRIPE_API_BASE": f"http://{NOBODY}",
        "STRIPE_PER_SECOND": "100000",
    },
    "services.email": {
        "SENDGRID_API_KEY": "SG.bench",
        "SENDGRID_API_BASE": f"http://{NOBODY}",
        "FROM_EMAIL": "clinic@example.com",
    },
}
