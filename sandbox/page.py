"""The page that shows what the sandbox has received, and the one on which a customer pays."""

from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sandbox import faults, ledger, mails, webhooks
from sandbox.control import DECISIONS, decide
from sandbox.payment_intents import OPEN
from sandbox.recipients import FROM_REFUSED, SES, TEXTS, TO_REFUSED
from sandbox.state import Json, State, get, newest
from sandbox.stripe_errors import ASK_THE_CUSTOMER, DECLINES, StripeError
from sandbox.texts import status_of
from sandbox.webhooks import Sender

HERE = Path(__file__).parent
CLINIC_ZONE = ZoneInfo("America/Sao_Paulo")

POLICY = (
    "default-src 'none'; style-src 'self'; frame-src 'self'; form-action 'self'; img-src 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
# A mail brings its own styles and is shown in a frame that may do nothing else.
MAIL_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"

NO_DECIMALS = {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}


def money(amount: int, currency: str) -> str:
    if currency in NO_DECIMALS:
        return f"{amount:,}".replace(",", ".") + f" {currency.upper()}"
    whole, cents = divmod(amount, 100)
    text = f"{whole:,}".replace(",", ".") + f",{cents:02d}"
    return f"R$ {text}" if currency == "brl" else f"{text} {currency.upper()}"


def clock(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, CLINIC_ZONE):%d/%m/%Y %H:%M:%S} (Brasília)"


class Page:
    def __init__(self, state: State, sender: Sender) -> None:
        self._state, self._sender = state, sender
        self._templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True)
        self._templates.filters |= {"money": money, "clock": clock}

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/", self.overview),
            Route("/pay/{id}", self.payment),
            Route("/pay/{id}", self.decide, methods=["POST"]),
            Route("/_sandbox/mails/{id}/html", self.mail),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    def _render(self, template: str, status: int = 200, **values: object) -> Response:
        html = self._templates.get_template(template).render(**values)
        headers = {
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return HTMLResponse(html, status, headers)

    async def overview(self, _request: Request) -> Response:
        with self._state.transaction() as db:
            texts = [{**text, "now": status_of(text)} for text in newest(db, "text", 30)]
            received = db.execute("SELECT coalesce(max(number), 0) AS number FROM ledger").fetchone()["number"]
            values: Json = {
                "payments": newest(db, "payment_intent", 30),
                "mails": [mails.shown(mail) for mail in newest(db, "mail", 20)],
                "texts": texts,
                "webhooks": webhooks.outbox(db, 40),
                "faults": faults.all_faults(db),
                "entries": ledger.read(db, None, received - 40, 40)[::-1],
            }
        return self._render("overview.html", **values, open=OPEN, magic=MAGIC)

    async def payment(self, request: Request) -> Response:
        with self._state.transaction() as db:
            intent = get(db, "payment_intent", request.path_params["id"])
        if intent is None:
            return self._render("missing.html", 404, id=request.path_params["id"])
        return self._render("payment.html", payment=intent, open=OPEN)

    async def decide(self, request: Request) -> Response:
        id = request.path_params["id"]
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        decision, back = form.get("decision", ""), f"/pay/{id}" if form.get("from") == "payment" else "/"
        if decision not in DECISIONS:
            return self._render("missing.html", 400, id=id)
        try:
            with self._state.transaction() as db:
                decide(db, id, decision, str(request.base_url).rstrip("/"))
        except StripeError as error:
            if error.status == 404:
                return self._render("missing.html", 404, id=id)
        # A second click on a payment that is over changes nothing: the page tells how it ended.
        self._sender.wake()
        return RedirectResponse(back, 303)

    async def mail(self, request: Request) -> Response:
        with self._state.transaction() as db:
            mail = get(db, "mail", request.path_params["id"])
        html = mails.part(mail["mail"], "text/html") if mail else None
        headers = {"Content-Security-Policy": MAIL_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(html or "", 200 if html else 404, headers)


TEXT_FATES = {
    "silent": "aceito, mas a requisição fica sem resposta",
    "noreceipt": "enviado, sem confirmação de entrega",
    "early": "a confirmação chega antes da resposta",
    "late": "a confirmação chega duas vezes, um dia depois",
    "undelivered": "não entregue (30003)",
    "failed": "falhou (30008)",
    "suspended": "falhou, conta suspensa (30002)",
    "unregistered": "falhou, remetente sem registro (30034)",
}

#: What the page lists for people to try.
MAGIC: dict[str, list[tuple[str, str]]] = {
    "E-mail: o que vem antes do @, com qualquer domínio e +rótulo": [
        ("delivered@", "entregue; também qualquer outro endereço"),
        ("bounced@", "devolvido"),
        ("complained@", "entregue, depois marcado como spam"),
        ("suppressed@", "descartado: descadastrado"),
        ("dropped@", "descartado: já devolvido antes"),
        ("deferred@", "adiado pelo servidor do destinatário"),
        ("silent@", "aceito, mas a requisição fica sem resposta"),
        ("noreceipt@", "aceito, sem confirmação de entrega"),
        ("early@", "a confirmação chega antes da resposta"),
        ("late@", "a confirmação chega duas vezes, um dia depois"),
        *[(f"{name}@simulator.amazonses.com", f"o mesmo que {same}@") for name, same in SES.items()],
    ],
    "SMS: destinatário": [
        ("+5511900000000", "entregue; também qualquer outro celular"),
        *[(number, TEXT_FATES[fate.name]) for number, fate in TEXTS.items()],
        *[(number, f"recusado: {refusal.code}") for number, refusal in TO_REFUSED.items()],
    ],
    "SMS: remetente": [(number, f"recusado: {refusal.code}") for number, refusal in FROM_REFUSED.items()],
    "Cartão: payment_method": [
        ("pm_card_visa", "aprovado; também qualquer outro"),
        *[(name, decline.decline_code or decline.code) for name, decline in DECLINES.items()],
        *[(name, "pede autenticação na página de pagamento") for name in sorted(ASK_THE_CUSTOMER)],
    ],
}
