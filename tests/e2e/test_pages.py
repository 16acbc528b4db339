"""The sandbox's page in a real browser: a person pays, and sees the receipt and the text arrive."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.e2e.whole import Whole, clinic, eventually, whole

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI needs a browser"
        pytest.skip("no Chromium here: the pages are not looked at")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        await opened.close()


async def read(page: Page, words: str) -> bool:
    await page.reload()
    return words in await page.inner_text("main")


@pytest.mark.parametrize("width", [390, 1280])
async def test_a_payment_paid_on_the_page_brings_its_receipt_and_its_text(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    with whole(tmp_path) as system:
        page = await browser.new_page(viewport={"width": width, "height": 900})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await play(system, page)

        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        assert complaints == []


async def play(system: Whole, page: Page) -> None:
    async with clinic(system) as patient:
        payment = await patient.create_payment()
        await page.goto(f"{system.sandbox}/")
        card = page.locator("article", has_text=payment["payment_id"])
        await card.get_by_role("button", name="Recusar").click()
        await card.get_by_text("Recusado").wait_for()
        await card.get_by_role("button", name="Pagar").click()
        await card.get_by_role("button", name="Pagar").wait_for(state="detached")

        await eventually(lambda: patient.paid(payment["payment_id"]))
        await eventually(lambda: read(page, "Recibo de Pagamento"))
        await eventually(lambda: read(page, "R$ 150,00"))
        assert await page.locator(".bubble").count() == 1
        mail = page.frame_locator("iframe").first
        assert "Ana Souza" in await mail.locator("body").inner_text()
