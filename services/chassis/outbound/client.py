"""
The HTTP client for all providers.

It raises NotSent where no byte of the request was sent, and OutcomeUnknown where the provider may have acted.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from services.chassis import metrics
from services.chassis.errors import DeadlineExceeded, NotSent, OutcomeUnknown, ServiceError
from services.chassis.outbound import deadline

MAX_BODY = 4 << 20
MAX_CONNECTIONS = 100
#: Seconds: the bounds of a wait that a provider asks for. A longer wait would pause a whole queue because of one
#: response. The provider can repeat it at the next request.
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1.0, 600.0


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    service: str
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def json(self) -> Any:
        """
        Return the body as JSON; {} for an error response without JSON, such as a proxy's page.

        Raises OutcomeUnknown for a success without JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            if 200 <= self.status < 300:
                raise OutcomeUnknown(self.service, error, f"{self.service} answered {self.status}, not JSON") from error
            return {}


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """
    Return the seconds to wait that a provider asks for, at least 1 and at most 600; None where it asks for none.

    Reads `Retry-After` (seconds or an HTTP date) and `X-RateLimit-Reset` (epoch seconds). Other text counts as absent.
    `now` is epoch seconds, by default the system clock.
    """
    known = {name.lower(): value.strip() for name, value in headers.items()}
    now = time.time() if now is None else now
    for seconds in (_seconds_or_date(known.get("retry-after", ""), now), _number(known.get("x-ratelimit-reset")) - now):
        if not math.isnan(seconds):
            return min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER)
    return None


def _seconds_or_date(text: str, now: float) -> float:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return _number(text)


def _number(text: str | None) -> float:
    """Return a number in plain decimal digits, NaN for anything else: `float` also takes `inf`, `1e9` and `1_0`."""
    return float(text) if text and text.isascii() and text.replace(".", "", 1).isdigit() else math.nan


class Outbound:
    def __init__(self, session: aiohttp.ClientSession, base_url: str, service: str, timeout: float) -> None:
        self._session = session
        self._base_url = base_url.rstrip("/")
        self._service = service
        self._timeout = timeout

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
        data: bytes | None = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ProviderResponse:
        """Return the response, whatever its status. `path` may hold an encoded query. Redirects are not followed."""
        url = URL(self._base_url + path, encoded=True)
        request = {"params": params, "json": json, "data": form if data is None else data, "headers": headers}
        started, outcome = time.monotonic(), "CANCELLED"
        try:
            response = await self._exchange(method, url, self._seconds(timeout), request)
            outcome = f"{response.status // 100}xx"
        except ServiceError as error:
            outcome = error.reason
            raise
        else:
            return response
        finally:
            taken = time.monotonic() - started
            metrics.outbound_seconds.labels(service=self._service, outcome=outcome).observe(taken)

    async def _exchange(self, method: str, url: URL, seconds: float, request: Mapping[str, Any]) -> ProviderResponse:
        progress = SimpleNamespace(sent=False)
        try:
            # aiohttp's own total timeout rounds up to whole seconds, beyond the deadline.
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, url, allow_redirects=False, trace_request_ctx=progress, **request
                ) as response,
            ):
                body = await self._read(response)
                return ProviderResponse(self._service, response.status, response.headers, body)
        except (aiohttp.ClientError, OSError) as error:  # OSError includes TimeoutError and SSLError
            what = f"no answer within {seconds:.1f} s" if isinstance(error, TimeoutError) else type(error).__name__
            if progress.sent:
                raise OutcomeUnknown(self._service, error, f"{self._service} may have acted: {what}") from error
            raise NotSent(self._service, error, f"{self._service} was not reached: {what}") from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                response.close()
                raise OutcomeUnknown(self._service, None, f"{self._service} answered more than {MAX_BODY} bytes")
        return bytes(body)

    def _seconds(self, timeout: float | None) -> float:
        seconds, remaining = timeout or self._timeout, deadline.remaining()
        if remaining is not None and remaining <= 0.0:
            raise DeadlineExceeded(f"no time was left to call {self._service}")
        return seconds if remaining is None else min(seconds, remaining)


async def _note_sending(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    # aiohttp calls this just before it writes the first byte, on a new or a reused connection.
    context.trace_request_ctx.sent = True


@asynccontextmanager
async def outbound(
    base_url: str,
    *,
    service: str,
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
    timeout: float = 8.0,
) -> AsyncIterator[Outbound]:
    """
    Open a pool of connections to one provider.

    aiohttp itself repeats an idempotent request on a reused connection that was closed. It never repeats a POST.
    """
    fixed = dict(headers or {})
    if auth is not None:
        fixed["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(_note_sending)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=fixed,
        timeout=aiohttp.ClientTimeout(total=None),
        trace_configs=[tracing],
    ) as session:
        yield Outbound(session, base_url, service, timeout)
