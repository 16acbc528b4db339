"""What happens when: the same seed makes the same trouble."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

PROVIDERS = {"stripe": "payments", "sendgrid": "email", "twilio": "sms"}
#: How often each is killed, beside the others.
KILLED = {"payments": 4, "email": 4, "sms": 4, "gateway": 5, "sandbox": 2}

#: What a provider does to a request of ours, and to the webhooks it owes us. A 503 never reached Stripe's own
#: bookkeeping of keys, a stored 500 would be repeated to us for a day.
REQUESTS: tuple[Mapping[str, object], ...] = (
    {"kind": "reset"},
    {"kind": "reset", "after": True},
    {"kind": "truncate"},
    {"kind": "hang_after_accepting", "seconds": 12},
    {"kind": "delay", "seconds": 2},
    {"kind": "status", "status": 503},
    {"kind": "throttle", "retry_after": 1},
)
WEBHOOKS: tuple[Mapping[str, object], ...] = (
    {"kind": "duplicate"},
    {"kind": "duplicate"},
    {"kind": "reorder", "seconds": 2},
    {"kind": "drop"},
)
#: The kinds of kill: at a random moment; when a provider has accepted and not answered; when the gateway has said 200
#: to a webhook; when the gateway's cursor has just moved.
AIMS = {"kill": 70, "kill_after_accepting": 12, "kill_after_answer": 8, "kill_at_cursor": 10}
#: Seconds. A lease is twenty; a long freeze outlasts it.
LONG_FREEZE = 22.0


@dataclass(frozen=True)
class Step:
    """One piece of trouble; `at` is in seconds from the beginning of the load."""

    at: float
    kind: str
    target: str = ""
    seconds: float = 0.0
    fault: Mapping[str, object] | None = None


def schedule(seed: int, seconds: float, kills: int, database: str, emphasis: str = "") -> list[Step]:
    """Spread the kills and everything else over the time; with an emphasis, most kills are of that kind."""
    dice = random.Random(seed)
    last = max(seconds - 1.0, 1.0)
    killed = KILLED | ({"postgres": 2} if database == "postgres" else {"supervisor": 1})
    aims = {**AIMS, emphasis: sum(AIMS.values()) * 2} if emphasis else AIMS

    def moments(count: int) -> list[float]:
        return [dice.uniform(1.0, last) for _ in range(count)]

    steps = [_kill(at, dice, killed, aims) for at in moments(kills)]
    steps += [_freeze(at, dice, killed, last) for at in moments(kills // 5)]
    steps += [_fault(at, dice, REQUESTS) for at in moments(int(seconds / 3))]
    steps += [_fault(at, dice, WEBHOOKS) for at in moments(int(seconds / 1.5))]
    steps += [Step(at, "cut", dice.choice(("callers", "webhooks"))) for at in moments(int(seconds / 6))]
    steps += [Step(at, "fill", "disk", dice.uniform(1.0, 3.0)) for at in moments(max(1, int(seconds / 40)))]
    return sorted(steps, key=lambda step: step.at)


def _kill(at: float, dice: random.Random, killed: Mapping[str, int], aims: Mapping[str, int]) -> Step:
    (kind,) = dice.choices(list(aims), list(aims.values()))
    (process,) = dice.choices(list(killed), list(killed.values()))
    if kind == "kill":
        return Step(at, kind, process)
    return Step(at, kind, dice.choice(list(PROVIDERS)) if kind == "kill_after_accepting" else "gateway")


def _freeze(at: float, dice: random.Random, killed: Mapping[str, int], last: float) -> Step:
    (process,) = dice.choices(
        *zip(*((name, often) for name, often in killed.items() if name != "supervisor"), strict=True)
    )
    long = dice.random() < 0.25 and process in PROVIDERS.values()
    return Step(
        min(at, last - LONG_FREEZE) if long else at, "freeze", process, LONG_FREEZE if long else dice.uniform(0.3, 3.0)
    )


def _fault(at: float, dice: random.Random, kinds: tuple[Mapping[str, object], ...]) -> Step:
    provider = dice.choice(list(PROVIDERS))
    return Step(at, "fault", provider, fault={"provider": provider, "times": dice.randint(1, 3), **dice.choice(kinds)})
