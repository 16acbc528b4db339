"""
What a process takes before anybody asks it for anything: its start, its memory, and its CPU while it waits.

Beside it the size of its image, where that has been built.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from bench.install import express
from bench.rounds import Contestant, Measure, Part
from bench.running import Running, cpu_seconds, memory_mib, running
from bench.scene import WEBHOOK_SECRET, Scene

#: Seconds of rest, and of looking on.
SETTLED, WATCHED = 1.0, 3.0


def part(scene: Scene) -> Part:
    def contestant(name: str, start: Callable[[], AbstractContextManager[Running]]) -> Contestant:
        @contextmanager
        def started() -> Iterator[Measure]:
            def measure() -> dict[str, float]:
                with start() as process:
                    time.sleep(SETTLED)
                    before = cpu_seconds(process.pid)
                    time.sleep(WATCHED)
                    return {
                        "start_seconds": process.start_seconds,
                        "memory_MiB": memory_mib(process.pid),
                        "idle_cpu_percent": (cpu_seconds(process.pid) - before) / WATCHED * 100,
                        **image(name),
                    }

            yield measure

        return Contestant(name, started)

    def node() -> AbstractContextManager[Running]:
        settings = {"NODE_ENV": "production", "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET}
        return running(["node", str(express() / "server.mjs")], scene.log("express"), **settings)

    ours = ("gateway", "services.payments", "services.email", "services.sms")
    return Part(
        "At rest, SQLite",
        [
            *(contestant(name.rpartition(".")[2], partial(scene.ours, name)) for name in ours),
            contestant("Express + stripe-node", node),
        ],
        rounds=3,
    )


def image(name: str) -> dict[str, float]:
    try:
        command = ["docker", "image", "inspect", "--format", "{{.Size}}", f"topsmile-{name}"]
        output = subprocess.run(command, capture_output=True, check=True, timeout=20)
        return {"image_MiB": json.loads(output.stdout) / 2**20}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
