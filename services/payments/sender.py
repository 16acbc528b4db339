"""The jobs of Stripe's queue: create a payment, read it again, cancel it when it expires, raise an alert."""

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

#: Seconds that one request to the provider may take.
SEND_TIMEOUT = 8.0
#: Milliseconds. Stripe keeps a key for 24 hours. After that, a payment of unknown outcome is read and never sent again.
KEY_LIFETIME = 23 * 3600 * 1000
#: Milliseconds after which a payment is refused if Stripe repeats a stored failure and has no such payment.
REFUSE_AFTER = 120_000
#: Seconds around an attempt in which to find its payment: how long one claim may try, and how far our clock and
#: Stripe's may differ. On a busy account, each additional second costs another page.
ATTEMPT_DURATION, CLOCK_SKEW = 10, 15
#: Seconds that an event waits for a reading of the method.
METHOD_TIMEOUT = 3.0

log = structlog.get_logger()


class Sender:
    def __init__(self, database: Database, provider: Provider, breaker: CircuitBreaker, retry: Retry) -> None:
        self._database = database
        self._provider = provider
        self.prepare = provider.prepare
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
            # Stripe may have received the request of an earlier claim, whatever the outcome of this one.
            error.definite = error.definite and not job.outcome_unknown
            with suppress(Unavailable):  # the job itself holds the same outcome
                outcome = pb.ATTEMPT_OUTCOME_NOT_SENT if error.definite else pb.ATTEMPT_OUTCOME_UNKNOWN
                await self._database.run(store.store_attempt, payment_id, outcome)
            raise
        return Complete.storing(transitions.apply_creation, payment_id, snapshot, job.claims > 1)

    async def _create(self, payment_id: str, job: Job, mark_attempted: MarkAttempted) -> PaymentSnapshot:
        age = 0
        if job.claims > 1:
            stored = await self._database.read(store.get, payment_id)
            age = stored.now - job.created_at
            if stored.intent_id:  # an event has stored it
                return await self._retrieve(stored.intent_id)
            if job.outcome_unknown and age > KEY_LIFETIME:
                found = await self._find(payment_id, job)
                if found is None:
                    raise ProviderRejected(
                        "stripe", None, "the payment never reached stripe and is too old to send: use a new key"
                    )
                return found
            # UNKNOWN after a lost response; otherwise this attempt replaces the last outcome.
            outcome = pb.ATTEMPT_OUTCOME_UNKNOWN if job.outcome_unknown else pb.ATTEMPT_OUTCOME_UNSPECIFIED
            await self._database.run(store.store_attempt, payment_id, outcome)
            await self._database.run(store.add_attempt_time, payment_id)
        await mark_attempted(SEND_TIMEOUT)
        try:
            return await self._post(job, payment_id)
        except OutcomeUnknown as error:
            if not error.kept:
                raise
            return await self._find_out(payment_id, job, error, too_late=age > REFUSE_AFTER)

    async def _find_out(self, payment_id: str, job: Job, error: OutcomeUnknown, *, too_late: bool) -> PaymentSnapshot:
        """Read whether Stripe made the payment: it repeats its stored failure while it keeps our key."""
        try:
            found = await self._find(payment_id, job)
        except ServiceError as unread:
            raise error from unread
        if found is not None:
            return found
        if not too_late:
            raise error
        raise ProviderRejected("stripe", error, "stripe failed and made no payment: use a new key") from error

    async def _post(self, job: Job, payment_id: str) -> PaymentSnapshot:
        """Send until Stripe responds or time is up. With one key that is safe even after a lost response."""
        lost, repeated = False, job.outcome_unknown

        async def create() -> PaymentSnapshot:
            nonlocal repeated
            try:
                return await self._provider.create(job.payload, f"{payment_id}-create")
            except OutcomeUnknown as error:
                # Count each key once at the breaker: its repeated failure says nothing about other payments.
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
        """Find a payment around the time of each attempt to create it."""
        attempts = [job.created_at // 1000, *await self._database.read(store.attempt_times, payment_id)]
        for since, until in windows(attempts):
            found = await self._retry.call(self._breaker.call, self._provider.find, payment_id, since, until)
            if found is not None:
                return found
        return None

    async def refresh(self, payment_id: str) -> None:
        """Read a payment for a caller and store the reading. If it fails, nothing repeats it."""
        before, snapshot = await self._snapshot(payment_id)
        if snapshot is not None:
            await self._database.run(transitions.apply_reading, payment_id, snapshot, before.version, False)

    async def _read(self, payment_id: str, job: Job, *, scheduled: bool) -> Outcome:
        before, snapshot = await self._snapshot(payment_id, job.payload.decode())
        if snapshot is None:
            return Complete()
        return Complete.storing(transitions.apply_reading, payment_id, snapshot, before.version, scheduled)

    async def _snapshot(self, payment_id: str, intent_id: str = "") -> tuple[store.Stored, PaymentSnapshot | None]:
        """Read an unpaid payment, and cancel it if it has expired. `intent_id`: used if none is stored."""
        before, excluded = await self._database.run(store.begin_reading, payment_id)
        intent_id = before.intent_id or intent_id
        if is_paid(before.record) or not intent_id:
            return before, None
        snapshot = await self._retrieve(intent_id)
        if before.intent_id and (transitions.must_cancel(before, snapshot) or (excluded and is_unpaid(snapshot))):
            snapshot = await self._cancel(before)
        return before, snapshot

    async def _cancel(self, before: store.Stored) -> PaymentSnapshot:
        """Cancel a closed payment at the provider, so that nobody can pay it. If it has moved on, read it."""
        key = f"{before.payment_id}-cancel-{before.version}"
        try:
            return await self._retry.call(self._breaker.call, self._provider.cancel, before.intent_id, key)
        except ProviderRejected:
            return await self._retrieve(before.intent_id)

    async def _alert(self, payment_id: str, alert: str) -> Outcome:
        """Log and count an alert. Its job runs once, whatever the number of replicas."""
        record = (await self._database.read(store.get, payment_id)).record
        metrics.payment_alerts_total.labels(alert.removeprefix("PAYMENT_ALERT_")).inc()
        log.error(
            "payment.alert_raised", alert=alert, payment=payment_id, appointment=record.appointment_id,
            requested=_text(record.amount), captured=_text(record.amount_captured),
        )  # fmt: skip
        return Complete()

    async def with_method(self, report: PaymentSnapshot) -> PaymentSnapshot:
        """
        Return a success with the method of its charge. Read it from Stripe if the report does not hold it.

        This costs one reading for each paid payment that offers several methods. If Stripe does not respond, the method
        stays empty: the success must not wait for it.
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


def _text(money: common.Money) -> str:
    return f"{money.amount_minor} {money.currency}"


def windows(attempts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the intervals, in epoch seconds, in which requests at these times may have made a payment, merged."""
    merged: list[tuple[int, int]] = []
    for attempt in sorted(attempts):
        since, until = attempt - CLOCK_SKEW, attempt + ATTEMPT_DURATION + CLOCK_SKEW
        if merged and since <= merged[-1][1]:
            since = merged.pop()[0]
        merged.append((since, until))
    return merged
