"""A payments service and the provider it talks to, for the files that tell its rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.chassis import metrics
from tests.fakes.payments_service import Payments, payments_service
from tests.fakes.sandbox_bench import Bench, sandbox_bench


@pytest.fixture(autouse=True)
def own_queues() -> Iterator[None]:
    """Forget the queues that a test counted: readiness shows those of the process, and all tests share one."""
    yield
    metrics.queues.clear()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with sandbox_bench(tmp_path / "sandbox.db") as made:
        yield made


@pytest.fixture
async def payments(database_url: str, bench: Bench) -> AsyncIterator[Payments]:
    async with payments_service(database_url, bench.url) as service:
        yield service
