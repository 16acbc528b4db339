"""The handler of the one queue: hand a text over, once, while it is of use."""

from __future__ import annotations

from services.chassis.breaker import CircuitBreaker
from services.chassis.database import Database
from services.chassis.errors import OutcomeUnknown, ProviderRefusedInput, ProviderRejected
from services.chassis.jobs import BeginAct, Done, Job, Later, Outcome
from services.chassis.retry import Retry
from services.sms import store
from services.sms.message import CODE, REMINDER, milliseconds, moment_of
from services.sms.pepper import Pepper
from services.sms.provider import OptedOut, Receipt, SmsProvider, Text
from services.sms.quiet_hours import QuietHours
from services.sms.record import RANKS, Sms
from topsmile.sms.v1 import sms_pb2 as pb

#: Seconds that handing over may take; shorter than the job's deadline, which leaves time to look first.
ACT = 8.0
#: Until an answer that was lost counts as no: Twilio lists what it takes within seconds, and tells callbacks sooner.
SURE_AFTER_MS = 60_000
#: Our clock may be ahead of Twilio's by so much.
SKEW_MS = 5 * 60 * 1000
#: What Twilio allows as a text's validity, in seconds; below 5 it sends nothing at all.
VALIDITY_LEAST, VALIDITY_MOST = 10, 36_000


class Sender:
    def __init__(
        self,
        database: Database,
        provider: SmsProvider,
        breaker: CircuitBreaker,
        pepper: Pepper,
        quiet_hours: QuietHours,
    ) -> None:
        self._database = database
        self._provider = provider
        self._breaker = breaker
        self._pepper = pepper
        self._quiet_hours = quiet_hours
        self._retry = Retry()

    async def handle(self, job: Job, begin_act: BeginAct) -> Outcome:
        sms = await self._database.read(store.get, job.id)
        if sms.rank >= RANKS["SENT"]:  # a callback has told it already
            return Done()
        kept = pb.SendSmsRequest.FromString(job.payload)
        body = self._pepper.unseal(kept.body) if sms.template == CODE else kept.body
        if job.unsure:
            outcome = await self._find_out(job, sms, body)
            if outcome is not None:
                return outcome
        elif job.expired:
            return Done.storing(store.expired, job.id, sms.trouble)
        elif (wait := self._quiet_for(job, sms)) > 0:
            return Later(wait, "QUIET_HOURS")
        left = (job.give_up_at - sms.now) // 1000
        text = Text(job.id, job.claims, sms.recipient, body, min(max(left, VALIDITY_LEAST), VALIDITY_MOST))
        return await self._hand_over(text, begin_act)

    async def _hand_over(self, text: Text, begin_act: BeginAct) -> Outcome:
        async def once() -> Receipt:
            await begin_act(ACT)
            return await self._provider.send(text)

        async def attempt() -> Receipt:  # again only where not a byte has left: NotSent
            return await self._breaker.call(once)

        try:
            receipt = await self._retry.call(attempt)
        except (ProviderRefusedInput, ProviderRejected) as refusal:
            status = "SUPPRESSED" if isinstance(refusal, OptedOut) else "FAILED"
            return Done.storing(store.advance, text.sms_id, status, refusal.reason, str(refusal.original)[:300])
        return Done.storing(store.sent, text.sms_id, receipt)

    async def _find_out(self, job: Job, sms: Sms, body: str) -> Outcome | None:
        """
        Ask whether an earlier attempt was taken; None: it was not, so send it.

        A code is asked about but not waited for: twice is better than never.
        """
        since = moment_of(sms.scheduled_at - SKEW_MS)

        async def attempt() -> Receipt | None:
            found = await self._breaker.call(self._provider.find, sms.recipient, body, since)
            return await self._database.read(store.unknown_to_us, found)

        found = await self._retry.call(attempt, also=lambda error: isinstance(error, OutcomeUnknown))
        if found is not None:
            return Done.storing(store.sent, job.id, found)
        waited = await self._database.run(store.unsure, job.id)
        if waited < SURE_AFTER_MS and (sms.template != CODE or job.expired):
            return Later(10.0 if waited < 10_000 else 30.0, "OUTCOME_UNKNOWN")
        if job.expired:
            return Done.storing(store.expired, job.id, sms.trouble)
        await self._database.run(store.not_accepted, job.id)
        return None

    def _quiet_for(self, job: Job, sms: Sms) -> float:
        """Seconds of the recipient's night still to come, for a reminder that an outage has pushed into it."""
        if sms.template != REMINDER:
            return 0.0
        now = moment_of(sms.now)
        allowed_at = self._quiet_hours.allowed_at(
            now, now=now, recipient=sms.recipient, start_at=moment_of(job.give_up_at)
        )
        return (milliseconds(allowed_at) - sms.now) / 1000
