"""The example for TypeScript teams, run as its README paragraph says, against five real processes."""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.whole import Whole, whole
from tests.processes import BARE, ROOT

EXAMPLE = ROOT / "examples" / "node"
TOKEN = "a-token-for-the-test"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT")


@pytest.fixture(scope="module")
def installed() -> None:
    """What package-lock.json names, in node_modules; npm leaves a note there of what it has put."""
    if not (shutil.which("node") and shutil.which("npm")):
        assert not os.environ.get("CI"), "CI needs node and npm"
        pytest.skip("no node or npm here: the example for @grpc/grpc-js is not run")
    note, lock = EXAMPLE / "node_modules" / "installed", (EXAMPLE / "package-lock.json").read_text()
    if note.exists() and note.read_text() == lock:
        return
    done = subprocess.run(["npm", "ci", "--prefer-offline"], cwd=EXAMPLE, capture_output=True, text=True, check=False)
    if any(sign in done.stderr for sign in OFFLINE) and not os.environ.get("CI"):
        pytest.skip("npm cannot reach its registry: the example for @grpc/grpc-js is not run")
    assert done.returncode == 0, done.stderr
    note.write_text(lock)


class Example:
    """`node pay.js 812`, with the cursor's file in a folder of the test's."""

    def __init__(self, system: Whole, folder: Path, **settings: str) -> None:
        self._settings = {
            "PAYMENTS_TARGET": system.settings["PAYMENTS_LISTEN"],
            "PAYMENTS_TOKEN": TOKEN,
            "PAYMENTS_CURSOR": str(folder / "cursor"),
            "PATIENCE": "60",
            **settings,
        }
        self.output = ""

    async def __aenter__(self) -> Self:
        self._running = await asyncio.create_subprocess_exec(
            "node",
            "pay.js",
            "812",
            cwd=EXAMPLE,
            env={**BARE, **self._settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running.returncode is None:
            self._running.kill()
            await self._running.communicate()

    async def says(self, pattern: str) -> str:
        """Read on until this is said."""
        assert self._running.stdout is not None
        while not (found := re.search(pattern, self.output)):
            line = await asyncio.wait_for(self._running.stdout.readline(), 60)
            assert line, f"never said {pattern}:\n{self.output}"
            self.output += line.decode()
        return found[0]

    async def ends(self) -> int:
        rest, _ = await asyncio.wait_for(self._running.communicate(), 60)
        self.output += rest.decode()
        return self._running.returncode or 0


async def test_the_node_example_outlives_trouble_and_creates_its_payment_once(installed: None, tmp_path: Path) -> None:
    tokens = f"clinic:read+send+events+forward:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
    with whole(tmp_path, {"PAYMENTS_AUTH_TOKENS": tokens, "GATEWAY_TOKEN": TOKEN}) as system:
        fault = {"provider": "stripe", "kind": "throttle", "retry_after": 1, "times": 3}
        await system.ask("POST", f"{system.sandbox}/_sandbox/faults", fault)
        async with Example(system, tmp_path) as example:
            await example.says("Pix copia e cola: 00")
            assert "RESOURCE_EXHAUSTED THROTTLED: again in 1" in example.output
            payment = await example.says(r"pay_\w+")
            await example.says(f"{payment} .* -> AWAITING_CUSTOMER")
            system.running["payments"].kill()
            await example.says("UNAVAILABLE")
            system.up("payments")
            await system.ask("POST", f"{system.sandbox}/_sandbox/payments/{payment}/pay")
            await example.says(f"{payment} .* -> SUCCEEDED")
            assert await example.ends() == 0
            assert "Pagamento de R$\N{NO-BREAK SPACE}150,00 confirmado" in example.output

        async with Example(system, tmp_path) as again:
            assert await again.ends() == 0
            assert f"{payment} is SUCCEEDED" in again.output
        async with Example(system, tmp_path, PAYMENTS_TOKEN="wrong") as stranger:
            assert await stranger.ends() == 1
            assert "UNAUTHENTICATED UNAUTHENTICATED" in stranger.output


async def test_the_node_example_says_when_nobody_answers(installed: None, tmp_path: Path) -> None:
    nobody = {"PAYMENTS_TARGET": "127.0.0.1:1", "PATIENCE": "1"}
    async with Example(Whole(tmp_path), tmp_path, **nobody) as example:
        assert await example.ends() in {1, 3}
        assert "UNAVAILABLE" in example.output
