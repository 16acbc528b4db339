"""The jobs of Stripe's queue: creating a payment, and reading again how one stands."""

from contextlib import suppress

from services.chassis.breaker import CircuitBreaker
from services.chassis.database import Database
from services.chassis.errors import (
    OutcomeUnknown,
    ProviderBusy,
    ProviderRefusedInput,
    ProviderRejected,
    ServiceError,
    Unavailable,
)
from services.chassis.jobs import BeginAct, Done, Job, Outcome
from services.chassis.retry import Retry
from services.payments import learning, store
from services.payments.lattice import FINAL
from services.payments.provider import Provider, Standing
from topsmile.payments.v1 import payments_pb2 as pb

#: Seconds one request to the provider may take.
ACT = 8.0
#: Stripe keeps a key for 24 hours; a payment of unknown outcome is looked for after that, and never sent again.
KEY_KEPT = 23 * 3600 * 1000
#: Seconds before and after the life of a job in which its payment is looked for: the clocks are not the same.
CLOCKS_APART = 300


class Sender:
    def __init__(self, database: Database, provider: Provider, breaker: CircuitBreaker, retry: Retry) -> None:
        self._database = database
        self._provider = provider
        self._breaker = breaker
        self._retry = retry

    async def handle(self, job: Job, begin_act: BeginAct) -> Outcome:
        payment_id, _, errand = job.id.partition("/")
        if errand:
            return await self._read(payment_id, errand)
        try:
            standing = await self._create(payment_id, job, begin_act)
        except (ProviderRejected, ProviderRefusedInput) as refusal:
            return Done.storing(learning.refused, payment_id, refusal)
        except ServiceError as error:
            # An earlier claim may have been heard, whatever is known of this one.
            error.definite = error.definite and not job.unsure
            with suppress(Unavailable):  # what is known of the job says the same, and is stored when it can be
                await self._database.run(store.attempted, payment_id, not error.definite)
            raise
        return Done.storing(learning.created, payment_id, standing, job.claims > 1)

    async def _create(self, payment_id: str, job: Job, begin_act: BeginAct) -> Standing:
        if job.claims > 1:
            stored = await self._database.read(store.get, payment_id)
            if stored.intent_id:  # an event has told it
                return await self._retrieve(stored.intent_id)
            if job.unsure and stored.now - job.created_at > KEY_KEPT:
                return await self._look_for(payment_id, job.created_at / 1000, stored.now / 1000)
            if stored.record.last_attempt == pb.ATTEMPT_OUTCOME_NOT_SENT:
                await self._database.run(store.attempted, payment_id, True)
        await begin_act(ACT)
        return await self._post(job.payload, payment_id)

    async def _post(self, prepared: bytes, payment_id: str) -> Standing:
        """Send until it is answered or time is up: under one key, that is safe even where an answer was lost."""
        lost = False

        async def once() -> Standing:
            nonlocal lost
            try:
                return await self._breaker.call(self._provider.create, prepared, f"{payment_id}-create")
            except ServiceError as error:
                lost = lost or not error.definite
                error.definite = not lost
                raise

        return await self._retry.call(once, also=lambda error: isinstance(error, OutcomeUnknown | ProviderBusy))

    async def _look_for(self, payment_id: str, since: float, until: float) -> Standing:
        found = await self._retry.call(
            self._breaker.call, self._provider.find, payment_id, since - CLOCKS_APART, until + CLOCKS_APART
        )
        if found is None:
            raise ProviderRejected("stripe", None, "never reached stripe, and is too old to be sent: use a new key")
        return found

    async def _read(self, payment_id: str, errand: str) -> Outcome:
        before = await self._database.run(store.begin_refresh, payment_id)
        if before.rank >= FINAL:
            return Done()
        standing = await self._retrieve(before.intent_id)
        look = int(errand.rpartition("/")[2]) if errand.startswith("look/") else None
        return Done.storing(learning.learned, payment_id, standing, before.version, look)

    async def _retrieve(self, intent_id: str) -> Standing:
        return await self._retry.call(self._breaker.call, self._provider.retrieve, intent_id)
