"""What the gateway's jobs do: hand events to the service that owns them, and ask email and sms for notices."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from google.protobuf.message import Message

from gateway import inbox
from gateway.clients import Clients, Service
from services.chassis.database.transactions import Database, Row
from services.chassis.errors import AlreadyExists, InvalidRequest, Rejected, Unavailable
from services.chassis.queue.jobs import Complete, Discard, Job, MarkAttempted, Outcome, Queue
from services.chassis.queue.worker import Worker
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2

log = structlog.get_logger()


class Delivery:
    """
    The jobs for one service, of two kinds: `event:…` for a row of the inbox, `notice:…` for a payment's change.

    No act here needs a `mark_attempted`: each RPC may be repeated, by event id or by idempotency key.
    """

    def __init__(
        self,
        database: Database,
        service: Service,
        provider: str,
        apply: Callable[[Row], Awaitable[tuple[str, str]]],
        notify: Callable[[bytes], Awaitable[Message]] | None = None,
    ) -> None:
        self._database = database
        self._service = service
        self._provider = provider
        self._apply = apply  #: Hands over one event; answers the outcome's name and its detail.
        self._notify = notify  #: Asks for a notice: the payload is the request.

    def worker(self) -> Worker:
        queue = Queue(self._service.name, self.handle, self.give_up, quiet=True, refuse_replay=self.refuse_replay)
        return Worker(self._database, queue, capacity=self._service.breaker.capacity)

    async def handle(self, job: Job, _begin_act: MarkAttempted) -> Outcome:
        kind, _, key = job.id.partition(":")
        if kind == "notice" and self._notify is not None:
            return await self._ask_for_notice(job, self._notify)
        return await self._hand_over(key)

    async def _hand_over(self, event_id: str) -> Outcome:
        event = await self._database.read(inbox.find, self._provider, event_id)
        if event is None:
            return Discard("EVENT_GONE")
        try:
            outcome, detail = await self._apply(event)
        except InvalidRequest as refusal:  # of the call, not of the event: no repetition mends it, but a release may
            return Discard(refusal.reason)
        if outcome == "RETRY":
            raise Unavailable("the service wants the event later")
        return Complete.storing(inbox.learn, self._provider, event_id, outcome, detail)

    async def _ask_for_notice(self, job: Job, notify: Callable[[bytes], Awaitable[Message]]) -> Outcome:
        try:
            await notify(job.payload)
        except (InvalidRequest, Rejected, AlreadyExists) as refusal:  # an answer: a landline takes no text message
            log.warning("notice.refused", queue=job.queue, job=job.id, reason=refusal.reason)
        return Complete()

    async def refuse_replay(self, job: Row) -> str:
        """Say why an event cannot be delivered any more: its body is erased, or it is deleted."""
        kind, _, key = job["id"].partition(":")
        if kind != "event":
            return ""
        event = await inbox.find(self._provider, key)
        return "EVENT_GONE" if event is None else "CONTENT_ERASED" if event["erased"] else ""

    async def give_up(self, job: Job, reason: str) -> None:
        kind, _, key = job.id.partition(":")
        if kind == "event":
            await inbox.give_up(self._provider, key, reason)


def deliveries(database: Database, clients: Clients) -> dict[str, Worker]:
    """Make the three workers, by the name of their queue."""
    payments, email, sms = clients.all

    async def apply_stripe(row: Row) -> tuple[str, str]:
        request = payments_pb2.ApplyEventsRequest(events=[_event(row)])
        return _outcome(await payments.call(clients.payment_admin_stub.ApplyEvents, request))

    async def apply_sendgrid(row: Row) -> tuple[str, str]:
        request = email_pb2.ApplyEventsRequest(events=[_event(row)])
        return _outcome(await email.call(clients.email_admin_stub.ApplyEvents, request))

    async def apply_twilio(row: Row) -> tuple[str, str]:
        request = sms_pb2.ApplyEventsRequest(events=[_event(row)])
        return _outcome(await sms.call(clients.sms_admin_stub.ApplyEvents, request))

    async def mail(payload: bytes) -> Message:
        request = email_pb2.SendPaymentNoticeRequest.FromString(payload)
        return await email.call(clients.email_stub.SendPaymentNotice, request)

    async def text(payload: bytes) -> Message:
        request = sms_pb2.SendPaymentNoticeRequest.FromString(payload)
        return await sms.call(clients.sms_stub.SendPaymentNotice, request)

    return {
        "payments": Delivery(database, payments, "stripe", apply_stripe).worker(),
        "email": Delivery(database, email, "sendgrid", apply_sendgrid, mail).worker(),
        "sms": Delivery(database, sms, "twilio", apply_twilio, text).worker(),
    }


def _event(row: Row) -> common.ProviderEvent:
    event = common.ProviderEvent(
        event_id=row["event_id"].rpartition("/")[2],
        type=row["type"],
        account=row["account"],
        body=row["body"],
        livemode=bool(row["livemode"]),
        query=row["query"],
        provider=row["provider"],
    )
    event.received_time.FromMilliseconds(row["received_at"])
    return event


def _outcome(response: Any) -> tuple[str, str]:
    (result,) = response.results
    return common.EventOutcome.Name(result.outcome).removeprefix("EVENT_OUTCOME_"), result.detail
