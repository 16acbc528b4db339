"""The jobs of Stripe's queue: creating a payment, reading again how one stands, giving up what nobody pays."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from services.chassis import metrics
from services.chassis.database.transactions import Database
from services.chassis.errors import (
    OutcomeUnknown,
    ProviderBusy,
    ProviderRefusedInput,
    ProviderRejected,
    ServiceError,
    Unavailable,
)
from services.chassis.outbound import deadline
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.retry import Retry
from services.chassis.queue.jobs import Complete, Job, MarkAttempted, Outcome
from services.payments import store, transitions
from services.payments.provider import PaymentSnapshot, Provider
from services.payments.status import is_paid, is_unpaid
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

#: Seconds one request to the provider may take.
SEND_TIMEOUT = 8.0
#: Stripe keeps a key for 24 hours; a payment of unknown outcome is looked for after that, and never sent again.
KEY_LIFETIME = 23 * 3600 * 1000
#: Milliseconds after which a payment is refused for good when Stripe repeats a stored failure and has no such payment.
REFUSE_AFTER = 120_000
#: Seconds around an attempt in which its payment is looked for: how long a claim may try, and what our clock and
#: Stripe's may differ by. On a busy account each second more is a page more.
ATTEMPT_DURATION, CLOCK_SKEW = 10, 15
#: Seconds that an event waits for a reading that adds the method.
METHOD_TIMEOUT = 3.0

log = structlog.get_logger()


class Sender:
    def __init__(self, database: Database, provider: Provider, breaker: CircuitBreaker, retry: Retry) -> None:
        self._database = database
        self._provider = provider
        self._breaker = breaker
        self._retry = retry

    async def handle(self, job: Job, mark_attempted: MarkAttempted) -> Outcome:
        payment_id, kind, subject = store.parse_job_id(job.id)
        if kind == "alert":
            return await self._alert(payment_id, subject)
        if kind:
            return await self._read(payment_id, job, scheduled=kind == "read")
        try:
            snapshot = await self._create(payment_id, job, mark_attempted)
        except (ProviderRejected, ProviderRefusedInput) as refusal:
            return Complete.storing(transitions.apply_refusal, payment_id, refusal)
        except ServiceError as error:
            # An earlier claim may have been heard, whatever is known of this one.
            error.definite = error.definite and not job.outcome_unknown
            with suppress(Unavailable):  # what is known of the job says the same, and is stored when it can be
                outcome = pb.ATTEMPT_OUTCOME_NOT_SENT if error.definite else pb.ATTEMPT_OUTCOME_UNKNOWN
                await self._database.run(store.store_attempt, payment_id, outcome)
            raise
        return Complete.storing(transitions.apply_creation, payment_id, snapshot, job.claims > 1)

    async def _create(self, payment_id: str, job: Job, mark_attempted: MarkAttempted) -> PaymentSnapshot:
        age = 0
        if job.claims > 1:
            stored = await self._database.read(store.get, payment_id)
            age = stored.now - job.created_at
            if stored.intent_id:  # an event has told it
                return await self._retrieve(stored.intent_id)
            if job.outcome_unknown and age > KEY_LIFETIME:
                found = await self._find(payment_id, job)
                if found is None:
                    raise ProviderRejected(
                        "stripe", None, "never reached stripe, and is too old to send: use a new key"
                    )
                return found
            # UNKNOWN after a lost answer; else whatever was known is over: this try is under way.
            outcome = pb.ATTEMPT_OUTCOME_UNKNOWN if job.outcome_unknown else pb.ATTEMPT_OUTCOME_UNSPECIFIED
            await self._database.run(store.store_attempt, payment_id, outcome)
            await self._database.run(store.add_attempt_time, payment_id)
        await mark_attempted(SEND_TIMEOUT)
        try:
            return await self._post(job, payment_id)
        except OutcomeUnknown as error:
            if not error.kept:
                raise
            return await self._settle(payment_id, job, error, too_late=age > REFUSE_AFTER)

    async def _settle(self, payment_id: str, job: Job, error: OutcomeUnknown, *, too_late: bool) -> PaymentSnapshot:
        """Find out by reading what Stripe made, since it repeats its failure for as long as it keeps our key."""
        try:
            found = await self._find(payment_id, job)
        except ServiceError as unread:
            raise error from unread
        if found is not None:
            return found
        if not too_late:
            raise error
        raise ProviderRejected("stripe", error, "failed at stripe, which made no payment: use a new key") from error

    async def _post(self, job: Job, payment_id: str) -> PaymentSnapshot:
        """Send until it is answered or time is up: under one key, that is safe even where an answer was lost."""
        lost, repeated = False, job.outcome_unknown

        async def create() -> PaymentSnapshot:
            nonlocal repeated
            try:
                return await self._provider.create(job.payload, f"{payment_id}-create")
            except OutcomeUnknown as error:
                # One key counts once: what it meets again says nothing about other payments.
                error.provider_fault = None if repeated else error.provider_fault
                repeated = True
                raise

        async def once() -> PaymentSnapshot:
            nonlocal lost
            try:
                return await self._breaker.call(create)
            except ServiceError as error:
                lost = lost or not error.definite
                error.definite = not lost
                raise

        return await self._retry.call(once, also=lambda error: isinstance(error, OutcomeUnknown | ProviderBusy))

    async def _find(self, payment_id: str, job: Job) -> PaymentSnapshot | None:
        """Look for a payment around each attempt to create it."""
        attempts = [job.created_at // 1000, *await self._database.read(store.attempt_times, payment_id)]
        for since, until in windows(attempts):
            found = await self._retry.call(self._breaker.call, self._provider.find, payment_id, since, until)
            if found is not None:
                return found
        return None

    async def _read(self, payment_id: str, job: Job, *, scheduled: bool) -> Outcome:
        before, excluded = await self._database.run(store.begin_reading, payment_id)
        intent_id = before.intent_id or job.payload.decode()
        if is_paid(before.record) or not intent_id:
            return Complete()
        snapshot = await self._retrieve(intent_id)
        if before.intent_id and (transitions.must_cancel(before, snapshot) or (excluded and is_unpaid(snapshot))):
            snapshot = await self._cancel(before)
        return Complete.storing(transitions.apply_reading, payment_id, snapshot, before.version, scheduled)

    async def _cancel(self, before: store.Stored) -> PaymentSnapshot:
        """Close at the provider what is given up here, so that nobody can pay it; or learn that it was paid."""
        key = f"{before.payment_id}-cancel-{before.version}"
        try:
            return await self._retry.call(self._breaker.call, self._provider.cancel, before.intent_id, key)
        except ProviderRejected:
            return await self._retrieve(before.intent_id)

    async def _alert(self, payment_id: str, alert: str) -> Outcome:
        """Tell an operator, once for each alert whatever number of replicas there is."""
        record = (await self._database.read(store.get, payment_id)).record
        metrics.payment_alerts_total.labels(alert.removeprefix("PAYMENT_ALERT_")).inc()
        log.error(
            "payment.alert_raised", alert=alert, payment=payment_id, appointment=record.appointment_id,
            asked=_words(record.amount), taken=_words(record.amount_captured),
        )  # fmt: skip
        return Complete()

    async def with_method(self, report: PaymentSnapshot) -> PaymentSnapshot:
        """
        Return a success with the method of its charge, which is read where the report does not tell it.

        That is one reading a success, of payments that offered several methods. While Stripe does not answer, the
        method stays empty: that it is paid is worth more than how.
        """
        if report.status != "SUCCEEDED" or report.method:
            return report
        if not await self._database.read(store.needs_method, report.intent_id, report.payment_id):
            return report
        try:
            with deadline.within(METHOD_TIMEOUT):
                read = await self._breaker.call(self._provider.retrieve, report.intent_id)
        except ServiceError:
            return report
        return replace(report, method=read.method) if read.status == "SUCCEEDED" else report

    async def _retrieve(self, intent_id: str) -> PaymentSnapshot:
        return await self._retry.call(self._breaker.call, self._provider.retrieve, intent_id)


def _words(money: common.Money) -> str:
    return f"{money.amount_minor} {money.currency}"


def windows(attempts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the times, in epoch seconds, in which something asked for at these may have been made: each once."""
    merged: list[tuple[int, int]] = []
    for attempt in sorted(attempts):
        since, until = attempt - CLOCK_SKEW, attempt + ATTEMPT_DURATION + CLOCK_SKEW
        if merged and since <= merged[-1][1]:
            since = merged.pop()[0]
        merged.append((since, until))
    return merged
