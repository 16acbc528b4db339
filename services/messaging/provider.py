"""What a channel needs of a provider."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from services.chassis.errors import ProviderRejected
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.queue.jobs import Route
from services.chassis.queue.rate_limit import RateLimit
from services.messaging.events import Event
from topsmile.common.v1 import common_pb2 as common

C = TypeVar("C")


class OptedOut(ProviderRejected):
    """The recipient has asked for no more messages."""


@dataclass(frozen=True)
class Receipt:
    """What a provider answers when it has taken a message."""

    #: Empty where the provider gives none.
    provider_message_id: str
    #: As the provider counts; 0 where it does not say yet.
    segments: int = 0


@dataclass(frozen=True)
class Provider(Generic[C]):
    """
    One provider of a channel; `C` is what it sends.

    `send` raises NotSent, ProviderThrottled, CredentialsRefused (nothing was sent, later it may work),
    ProviderRefusedInput, ProviderRejected, OptedOut (it never will) and OutcomeUnknown (it may have been taken).

    `read_event` says what an event of this provider means; it never raises.

    `find` lists what it has taken since a time with the same recipient and words, other messages' texts included. None:
    it cannot be asked. Then only its events prove that a lost answer was a yes.
    """

    name: str
    send: Callable[[C], Awaitable[Receipt]]
    breaker: CircuitBreaker
    rate_limit: RateLimit
    read_event: Callable[[common.ProviderEvent], Event]
    find: Callable[[C, datetime], Awaitable[Sequence[Receipt]]] | None = None
    #: Seconds after a lost answer until "not found" counts as "not taken".
    patience: float = 600.0
    #: Seconds between two looks, at first; later looks are further apart.
    ask_every: float = 30.0

    @property
    def route(self) -> Route:
        return Route(self.name, self.breaker.capacity, self.rate_limit)
