"""
The outbox: webhooks are written with the work that caused them and sent afterwards, again and again until taken.

A webhook is signed anew at each attempt, as the providers do; a restart goes on where the last process stopped and may
send one twice.
"""

import asyncio
import contextlib
import sqlite3
import time
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aiohttp
import yarl

from sandbox import faults
from sandbox.signatures import Keys
from sandbox.state import State, now_ms

#: Seconds between attempts: impatient at first, because a person or a test is watching. The last one repeats.
WAITS = (0.2, 1, 5, 30, 120, 600, 3600)
GIVE_UP_AFTER_MS = 3 * 24 * 3600 * 1000
ATTEMPT_TIMEOUT = 10.0
MAX_CONCURRENT = 50

DUE = """
    SELECT number, provider, url, body, token, created_at, attempts FROM webhooks
    WHERE state = 'waiting' AND due_at <= :now AND (:has_target OR provider = 'twilio')
    ORDER BY due_at, number LIMIT 200
"""
NEXT_DUE = """
    SELECT min(due_at) AS due_at FROM webhooks
    WHERE state = 'waiting' AND due_at > :now AND (:has_target OR provider = 'twilio')
"""


def add(
    db: sqlite3.Connection,
    provider: str,
    *,
    subject: str,
    object_id: str,
    url: str,
    body: bytes,
    after: float = 0.0,
) -> None:
    """`url` is a path of the receiver's, or the whole address as the request gave it; `after` is in seconds."""
    now = now_ms()
    fault = faults.take(db, provider, f"{subject} {url}", faults.WEBHOOKS)
    state, due, copies = "waiting", now + int(after * 1000), 1
    if fault is not None:
        state = "dropped" if fault.kind == "drop" else state
        due += int(fault.seconds * 1000) if fault.kind == "reorder" else 0
        copies = 2 if fault.kind == "duplicate" else copies
    token = str(uuid4())
    db.executemany(
        "INSERT INTO webhooks (provider, subject, object_id, url, body, token, created_at, due_at, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(provider, subject, object_id, url, body, token, now, due, state)] * copies,
    )


class Sender:
    def __init__(self, state: State, keys: Keys, target: str) -> None:
        self._state, self._keys, self._target = state, keys, target
        self._awake = asyncio.Event()
        self._sending: dict[int, asyncio.Task[None]] = {}

    def wake(self) -> None:
        self._awake.set()

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, headers={"Accept": "*/*"}) as http:
            try:
                while True:
                    self._awake.clear()
                    wait = self._start_due(http)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._awake.wait()
            finally:
                tasks = list(self._sending.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _start_due(self, http: aiohttp.ClientSession) -> float:
        """Start what is due; how long until more is."""
        parameters = {"now": now_ms(), "has_target": bool(self._target)}
        with self._state.transaction() as db:
            due = db.execute(DUE, parameters).fetchall()
            following = db.execute(NEXT_DUE, parameters).fetchone()["due_at"]
        for webhook in due:
            if webhook["number"] not in self._sending and len(self._sending) < MAX_CONCURRENT:
                self._sending[webhook["number"]] = asyncio.create_task(self._attempt(http, webhook))
        return 60.0 if following is None else min(60.0, max(0.001, (following - now_ms()) / 1000))

    async def _attempt(self, http: aiohttp.ClientSession, webhook: sqlite3.Row) -> None:
        started = time.monotonic()
        status, error = None, None
        try:
            url, headers = self._addressed(webhook)
            async with http.post(
                yarl.URL(url, encoded=True), data=webhook["body"], headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        try:
            self._record(webhook, status, error, int((time.monotonic() - started) * 1000))
        finally:
            del self._sending[webhook["number"]]
            self.wake()

    def _addressed(self, webhook: sqlite3.Row) -> tuple[str, dict[str, str]]:
        url, body, seconds = webhook["url"], webhook["body"], int(time.time())
        if webhook["provider"] == "stripe":
            signed, agent, content_type = self._keys.sign_stripe(body, seconds), "Stripe/1.0", "application/json"
        elif webhook["provider"] == "sendgrid":
            signed, agent, content_type = (
                self._keys.sign_sendgrid(body, seconds),
                "SendGrid Event API",
                "application/json",
            )
        else:
            # Signed for the public address that the request named, whatever stands between here and there.
            signed = {**self._keys.sign_twilio(url, body), "I-Twilio-Idempotency-Token": webhook["token"]}
            agent, content_type = "TwilioProxy/1.1", "application/x-www-form-urlencoded; charset=UTF-8"
        headers = {**signed, "User-Agent": agent, "Content-Type": content_type}
        if url.startswith("/"):
            return self._target + url, headers
        if self._target:
            target, given = urlsplit(self._target), urlsplit(url)
            url = urlunsplit((target.scheme, target.netloc, target.path + given.path, given.query, ""))
        return url, headers

    def _record(self, webhook: sqlite3.Row, status: int | None, error: str | None, milliseconds: int) -> None:
        now, attempts = now_ms(), webhook["attempts"] + 1
        wait = WAITS[min(attempts, len(WAITS)) - 1]
        if status is not None and 200 <= status < 300:
            state = "delivered"
        else:
            state = "given_up" if now - webhook["created_at"] > GIVE_UP_AFTER_MS else "waiting"
        with self._state.transaction() as db:
            db.execute(
                "INSERT INTO webhook_attempts (webhook, at, milliseconds, status, error) VALUES (?, ?, ?, ?, ?)",
                (webhook["number"], now, milliseconds, status, error),
            )
            db.execute(
                "UPDATE webhooks SET attempts = ?, state = ?, due_at = ? WHERE number = ?",
                (attempts, state, now + int(wait * 1000), webhook["number"]),
            )


def flush(db: sqlite3.Connection, provider: str | None) -> int:
    """Make everything that waits due now: nobody wants to wait a day for a receipt that is a day late."""
    return db.execute(
        "UPDATE webhooks SET due_at = ?2 WHERE state = 'waiting' AND due_at > ?2 AND (?1 IS NULL OR provider = ?1)",
        (provider, now_ms()),
    ).rowcount


def outbox(db: sqlite3.Connection, limit: int) -> list[dict[str, object]]:
    """Newest first, each with its attempts."""
    rows = db.execute(
        "SELECT number, provider, subject, object_id, url, body, created_at, due_at, state FROM webhooks"
        " ORDER BY number DESC LIMIT ?",
        (limit,),
    )
    attempts = "SELECT at, milliseconds, status, error FROM webhook_attempts WHERE webhook = ? ORDER BY at"
    return [
        {
            **dict(row),
            "body": row["body"].decode(),
            "attempts": [dict(attempt) for attempt in db.execute(attempts, (row["number"],))],
        }
        for row in rows.fetchall()
    ]
