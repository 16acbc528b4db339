"""
The hand-over of one email to SendGrid.

SendGrid can neither be asked after a mail nor told to take one only once. When an answer is lost, its events are
awaited: the first one proves that the mail was taken. After ten minutes without any it is taken as refused and sent
again. What may happen twice: a mail whose events take longer than that, or whose webhook does not reach us.
"""

from __future__ import annotations

from services.chassis.breaker import CircuitBreaker
from services.chassis.database import Database
from services.chassis.errors import OutcomeUnknown, ProviderRefusedInput, ProviderRejected
from services.chassis.jobs import BeginAct, Done, Job, Later, Outcome, Queue
from services.chassis.pace import Pace
from services.chassis.retry import Retry
from services.email import store
from services.email.message import REQUESTS, Message
from services.email.provider import EmailProvider, Mail
from services.email.rendering import Renderer

#: Seconds without an event until a mail whose answer was lost is taken as not accepted.
PATIENCE = 600.0
LOOK_AGAIN = 30.0
#: Seconds a POST may take, which the claim has to outlast.
ACT = 8.0


class Sender:
    def __init__(
        self, database: Database, provider: EmailProvider, breaker: CircuitBreaker, renderer: Renderer, retry: Retry
    ) -> None:
        self._database = database
        self._provider = provider
        self._breaker = breaker
        self._renderer = renderer
        self._retry = retry

    def queue(self, pace: Pace) -> Queue:
        return Queue(store.QUEUE, self.hand_over, store.on_dead, pace=pace)

    async def hand_over(self, job: Job, begin_act: BeginAct) -> Outcome:
        standing = await self._database.read(store.standing, job.id)
        if standing.accepted:
            return Done()
        useless = standing.useless or job.expired
        if job.unsure:
            if (later := await self._find_out(job.id, standing.doubted_for)) is not None:
                return later
            if useless:
                return Done.storing(store.undecided, job.id)
            await self._database.run(store.doubt, job.id)  # should this attempt's answer be lost too, wait anew
        elif useless:
            return Done.storing(store.not_sent, job.id, "EXPIRED", standing.last_trouble)
        mail = self._mail(job, standing.template)
        try:
            provider_message_id = await self._retry.call(self._send, mail, begin_act)
        except OutcomeUnknown:
            await self._database.run(store.doubt, job.id)
            raise
        except (ProviderRefusedInput, ProviderRejected) as refusal:
            return Done.storing(store.not_sent, job.id, "FAILED", refusal.reason)
        return Done.storing(store.sent, job.id, provider_message_id)

    async def _find_out(self, email_id: str, doubted_for: float | None) -> Later | None:
        if doubted_for is None:  # its worker died in the act
            await self._database.run(store.doubt, email_id)
            doubted_for = 0.0
        if doubted_for >= PATIENCE:
            return None
        return Later(min(max(LOOK_AGAIN, doubted_for), PATIENCE - doubted_for), OutcomeUnknown.default_reason)

    async def _send(self, mail: Mail, begin_act: BeginAct) -> str:
        await begin_act(ACT)
        return await self._breaker.call(self._provider.send, mail)

    def _mail(self, job: Job, template: str) -> Mail:
        message = Message.from_request(REQUESTS[template].FromString(job.payload))
        content = self._renderer.render(message, job.created_at)
        return Mail(
            email_id=job.id,
            attempt=job.claims,
            recipient=message.recipient,
            subject=message.subject,
            text=content.text,
            html=content.html,
            invitation=content.invitation,
        )
