"""
The hand-over of one message to a provider, once, while it is of use.

When an answer is lost, the provider is asked, or its events are awaited where it cannot be asked. After its patience a
message that was not found counts as not taken and is sent again. What may be sent twice: a message that the provider
shows, or reports, later than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from services.chassis.database.transactions import Database
from services.chassis.errors import OutcomeUnknown, ProviderRefusedInput, ProviderRejected
from services.chassis.outbound.retry import Retry
from services.chassis.queue.jobs import Complete, Discard, Job, MarkAttempted, Outcome, Queue, Snooze
from services.messaging import store as transactions
from services.messaging.provider import OptedOut, Provider, Receipt
from services.messaging.record import MessageRecord
from services.messaging.requests import time_of
from services.messaging.store import Store

C = TypeVar("C")

#: Seconds that a request to the provider may take; its claim has to last longer.
SEND_TIMEOUT = 8.0
#: How far our clock may be ahead of a provider's.
SKEW = timedelta(minutes=5)
MAX_DETAIL = 300


@dataclass(frozen=True)
class Policy(Generic[C]):
    """The channel's own rules."""

    #: Make what the provider sends: from the record, and from the job that holds its words.
    render: Callable[[MessageRecord, Job], C]
    #: Seconds that a message has to wait though it is due, and why.
    hold: Callable[[MessageRecord], tuple[float, str]] = lambda _record: (0.0, "")
    #: True where a message is better sent twice than late.
    prefers_twice: Callable[[MessageRecord], bool] = lambda _record: False


class Sender(Generic[C]):
    def __init__(
        self, database: Database, store: Store, providers: Sequence[Provider[C]], policy: Policy[C], retry: Retry
    ) -> None:
        self._database = database
        self._store = store
        self._providers: Mapping[str, Provider[C]] = {provider.name: provider for provider in providers}
        self._policy = policy
        self._retry = retry

    def queue(self) -> Queue:
        return Queue(
            self._store.queue,
            self.handle,
            self._store.given_up,
            routes=tuple(provider.route for provider in self._providers.values()),
            purge=self._store.purge,
            refuse_replay=self._store.refuse_replay,
        )

    async def handle(self, job: Job, mark_attempted: MarkAttempted) -> Outcome:
        record = await self._database.read(self._store.get, job.id)
        if record.accepted:
            return Complete()
        if not job.payload:
            return Discard("CONTENT_ERASED")  # a replayed dead letter: there is nothing left to send
        provider = self._providers[job.provider]
        if job.outcome_unknown:
            outcome = await self._find_out(job, record, provider)
            if outcome is not None:
                return outcome
        elif record.expired:
            return Complete.storing(transactions.not_sent, job.id, "EXPIRED", record.note)
        else:
            wait, reason = self._policy.hold(record)
            if wait > 0:
                return Snooze(wait, reason)
        return await self._hand_over(job, self._policy.render(record, job), provider, mark_attempted)

    async def _hand_over(self, job: Job, content: C, provider: Provider[C], mark_attempted: MarkAttempted) -> Outcome:
        async def once() -> Receipt:
            await mark_attempted(SEND_TIMEOUT, transactions.attempted, job.id, job.claims, provider.name)
            return await provider.send(content)

        async def attempt() -> Receipt:  # again only where not a byte has left: NotSent
            return await provider.breaker.call(once)

        try:
            receipt = await self._retry.call(attempt)
        except OutcomeUnknown:
            await self._database.run(transactions.outcome_unknown, job.id)
            raise
        except (ProviderRefusedInput, ProviderRejected) as refusal:
            status = "SUPPRESSED" if isinstance(refusal, OptedOut) else "FAILED"
            detail = refusal.original if isinstance(refusal.original, str) else refusal.message
            return Complete.storing(
                transactions.refused, job.id, job.claims, status, refusal.reason, detail[:MAX_DETAIL]
            )
        return Complete.storing(transactions.sent, job.id, job.claims, provider.name, receipt)

    async def _find_out(self, job: Job, record: MessageRecord, provider: Provider[C]) -> Outcome | None:
        """Find out whether an earlier attempt was taken; None: it was not, so send it."""
        if provider.find is not None:
            found = await self._found(provider, self._policy.render(record, job), record)
            if found is not None:
                number = (await self._database.read(transactions.latest_attempt, job.id)) or job.claims
                return Complete.storing(transactions.sent, job.id, number, provider.name, found)
        waited = await self._database.run(transactions.outcome_unknown, job.id) / 1000
        if waited < provider.patience and (record.expired or not self._policy.prefers_twice(record)):
            pause = min(max(provider.ask_every, waited), provider.patience - waited)
            return Snooze(pause, OutcomeUnknown.default_reason)
        if record.expired and provider.find is None:
            return Complete.storing(transactions.undecided, job.id)
        if record.expired:
            return Complete.storing(transactions.not_sent, job.id, "EXPIRED", record.note)
        await self._database.run(transactions.not_taken, job.id)
        return None

    async def _found(self, provider: Provider[C], content: C, record: MessageRecord) -> Receipt | None:
        assert provider.find is not None  # noqa: S101 - asked by the caller
        find, since = provider.find, time_of(record.scheduled_at) - SKEW

        async def attempt() -> Receipt | None:
            receipts = await provider.breaker.call(find, content, since)
            return await self._database.read(transactions.unclaimed, provider.name, receipts)

        return await self._retry.call(attempt, also=lambda error: isinstance(error, OutcomeUnknown))
