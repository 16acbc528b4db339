"""
SendSms: accepted on disk beside what gRPC itself costs, and accepted and sent beside the least that must be done.

For the first, Twilio is away and its breaker open: the texts wait. `sdk` keeps nothing, so a text that Twilio does not
take is the caller's trouble.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench.rounds import Contestant, Measure, Part, Ratio
from bench.running import Running, cpu_seconds, load, module, running
from bench.scene import CONCURRENCY, Scene

COUNT = 2000
SENT_WITHIN = 60.0


def part(scene: Scene) -> Part:
    def contestant(name: str, start: Callable[[], AbstractContextManager[Running]], *, sends: bool) -> Contestant:
        @contextmanager
        def started() -> Iterator[Measure]:
            with start() as process:

                def measure() -> dict[str, float]:
                    before, requests, began = cpu_seconds(process.pid), scene.requests(), time.monotonic()
                    seen = load("rpcs", "sms", process.addresses["grpc"], COUNT, CONCURRENCY)
                    while sends and scene.requests() < requests + COUNT and time.monotonic() < began + SENT_WITHIN:
                        time.sleep(0.02)
                    time.sleep(0.1)  # until the last outcome is stored
                    return {"cpu_ms_per_1000": (cpu_seconds(process.pid) - before) * 1e6 / COUNT, **seen}

                yield measure

        return Contestant(name, started)

    def peer(kind: str) -> AbstractContextManager[Running]:
        settings = {"PEER_DATABASE": f"{scene.folder}/{kind}.db", "TWILIO_API_BASE": scene.providers_url}
        return running(module("bench.peers.sms", kind), scene.log(kind), **settings)

    return Part(
        "SendSms",
        [
            contestant("sms, accepted", lambda: scene.ours("services.sms"), sends=False),
            contestant("empty grpc.aio echo", lambda: peer("echo"), sends=False),
            contestant(
                "sms, accepted and sent",
                lambda: scene.ours("services.sms", TWILIO_API_BASE=scene.providers_url),
                sends=True,
            ),
            contestant("grouped commits and a POST by aiohttp", lambda: peer("outbox"), sends=True),
            contestant("Twilio's library in the RPC, storing nothing", lambda: peer("sdk"), sends=True),
        ],
        [
            Ratio("sms, accepted", "empty grpc.aio echo", 1.8),
            Ratio("sms, accepted and sent", "grouped commits and a POST by aiohttp", 1.3),
            Ratio("sms, accepted and sent", "Twilio's library in the RPC, storing nothing", 1.0),
        ],
    )
