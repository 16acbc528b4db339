"""CreatePayment: our record, job, change log and outcome in two commits, beside Stripe's library called in the RPC."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench.rounds import Contestant, Measure, Part, Ratio
from bench.running import Running, cpu_seconds, load, module, running
from bench.scene import CONCURRENCY, Scene

COUNT = 1500


def part(scene: Scene) -> Part:
    def contestant(name: str, start: Callable[[], AbstractContextManager[Running]], *, postgres: bool) -> Contestant:
        @contextmanager
        def started() -> Iterator[Measure]:
            with start() as process:
                pids = [process.pid, scene.postmaster] if postgres else [process.pid]

                def measure() -> dict[str, float]:
                    before = cpu_seconds(*pids)
                    seen = load("rpcs", "payments", process.addresses["grpc"], COUNT, CONCURRENCY)
                    return {"cpu_ms_per_1000": (cpu_seconds(*pids) - before) * 1e6 / COUNT, **seen}

                yield measure

        return Contestant(name, started)

    def ours(database: str = "") -> AbstractContextManager[Running]:
        return scene.ours("services.payments", database, STRIPE_API_BASE=scene.providers_url)

    def library() -> AbstractContextManager[Running]:
        return running(module("bench.peers.payments"), scene.log("library"), STRIPE_API_BASE=scene.providers_url)

    return Part(
        "CreatePayment",
        [
            contestant("payments, SQLite", ours, postgres=False),
            contestant("payments, PostgreSQL", lambda: ours(scene.postgres.database()), postgres=True),
            contestant("Stripe's library in the RPC, storing nothing", library, postgres=False),
        ],
        [Ratio("payments, SQLite", "Stripe's library in the RPC, storing nothing", 0.5)],
    )
