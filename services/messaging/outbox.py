"""What the RPCs of all channels do: accept, get, cancel, apply events; each for its caller."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from services.chassis import context
from services.chassis.database.transactions import Database
from services.chassis.errors import BreakerOpen
from services.chassis.rpc.idempotency import Fingerprints
from services.chassis.rpc.validation import Fields, check_events
from services.messaging import store as transactions
from services.messaging.events import Event, IgnoredEvent, InvalidEvent, StatusEvent
from services.messaging.provider import Provider
from services.messaging.record import MessageRecord, Waiting
from services.messaging.requests import NewMessage
from services.messaging.store import Call, Store
from topsmile.common.v1 import common_pb2 as common


class Outbox:
    """`wake` is called when there is something to hand over."""

    def __init__(
        self,
        database: Database,
        store: Store,
        fingerprints: Fingerprints,
        providers: Sequence[Provider[Any]],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._store = store
        self._fingerprints = fingerprints
        self._providers = providers
        self._wake = wake

    async def accept(self, message: NewMessage) -> MessageRecord:
        call = Call(
            message_id=f"{self._store.prefix}_{secrets.token_hex(12)}",
            caller=context.caller.get(),
            fingerprint=self._fingerprints(message.fields),
            trace=context.trace(),
        )
        record = await self._database.add(self._store.accept, call, message)
        self._wake()
        return record

    async def get(self, request: ProtoMessage, field: str) -> MessageRecord:
        fields = Fields(request)
        message_id = fields.identifier(field)
        fields.check()
        return await self._database.read(self._get, message_id, _rows_of())

    async def _get(self, message_id: str, caller: str | None) -> MessageRecord:
        record = await self._store.get(message_id, caller)
        if record.accepted or record.job_state != "queued":
            return record
        # With several providers, what holds back the last one holds back the message.
        for provider in self._providers:
            record = await transactions.waiting(record, provider.name)
            if not record.waiting.reason and record.due_at <= record.now and provider.breaker.capacity() == 0:
                until = record.now + round(provider.breaker.retry_after() * 1000)
                record = replace(record, waiting=Waiting(BreakerOpen.default_reason, until))
        return record

    async def cancel(self, request: ProtoMessage, field: str) -> tuple[int, int]:
        """Cancel by the message's own `field` or by `appointment_id`; return how many, and how many were too late."""
        fields = Fields(request)
        reference, id = fields.reference()
        fields.check()
        cancel = self._store.cancel if reference == field else self._store.cancel_appointment
        return await self._database.run(cancel, id, _rows_of())

    async def apply(self, events: Sequence[common.ProviderEvent]) -> Iterable[common.EventResult]:
        """Store what the events say; each is read by the provider that it names, by the first one if it names none."""
        check_events(events)
        readings = [self._read(event) for event in events]
        statuses = [reading for reading in readings if isinstance(reading, StatusEvent)]
        applied = iter(await self._database.run(transactions.apply, statuses))
        return [_result(event, reading, applied) for event, reading in zip(events, readings, strict=True)]

    def _read(self, event: common.ProviderEvent) -> Event:
        for provider in self._providers:
            if event.provider in {"", provider.name}:
                return provider.read_event(event)
        return InvalidEvent(f"provider must be one of {', '.join(provider.name for provider in self._providers)}")


def _result(
    event: common.ProviderEvent, reading: Event, applied: Iterable[common.EventOutcome.ValueType]
) -> common.EventResult:
    match reading:
        case InvalidEvent(why):
            return common.EventResult(event_id=event.event_id, outcome=common.EVENT_OUTCOME_REJECTED, detail=why)
        case IgnoredEvent(why):
            return common.EventResult(event_id=event.event_id, outcome=common.EVENT_OUTCOME_IGNORED_FOREIGN, detail=why)
    outcome = next(iter(applied))
    ours = outcome != common.EVENT_OUTCOME_IGNORED_FOREIGN
    return common.EventResult(event_id=event.event_id, outcome=outcome, subject=reading.message_id if ours else "")


def _rows_of() -> str | None:
    """Return whose rows this call may see; None: everybody's."""
    return None if "admin" in context.scopes.get() else context.caller.get()
