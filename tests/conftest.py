"""What every test may ask for: both databases, each empty and with its schema."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database
from tests.postgres_cluster import BINARIES, Cluster, cluster

# A loaded machine takes longer than hypothesis's 200 ms for one example, most of all for the first.
settings.register_profile("topsmile", deadline=None)
settings.load_profile("topsmile")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    if BINARIES is None:
        assert not os.environ.get("CI"), "CI needs PostgreSQL's binaries"
        pytest.skip("no PostgreSQL binaries here (initdb): the tests on PostgreSQL are skipped")
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; a test that uses it runs once on each."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    server: Cluster = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with connect(database_url) as opened:
        yield opened
