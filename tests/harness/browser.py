"""A browser that opens pages as readers do: narrow and wide, light and dark, by keyboard; Debian's Chromium by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Scheme = Literal["light", "dark"]
WIDTHS = (400, 1000, 1600)  # pixels
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
_BROKEN = """async () => {
  const images = [...document.images].filter((image) => image.getAttribute("src"));
  images.forEach((image) => { image.loading = "eager" });
  await Promise.all(images.map((image) => image.decode().catch(() => null)));
  return images.filter((image) => image.naturalWidth === 0).map((image) => image.alt);
}"""


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium; skips where it or Playwright is not installed."""
    driver = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(started: Browser, url: str, *, width: int = 1000, scheme: Scheme = "light", online: bool = False) -> Iterator[Page]:
    """Open a page and fail for an error of its scripts, a request to elsewhere, or a line on the console.

    ``online`` allows requests to the host of ``url``; a file has everything in itself.
    """
    context = started.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    own = url.split("/")[2] if online else None
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: _note_foreign(request.url, url, own, said))
    page.goto(url, wait_until="load")
    try:
        yield page
    finally:
        context.close()
    assert said == []


def _note_foreign(requested: str, url: str, own: str | None, said: list[str]) -> None:
    is_own = requested == url or requested.startswith(("data:", "blob:")) or (own is not None and requested.split("/")[2] == own)
    if not is_own:
        said.append(f"request to {requested}")


def expect_readable(page: Page) -> None:
    """Check that a page does not scroll sideways, that its images load, and that each control is reached by Tab and visible."""
    assert page.evaluate(_WIDER) <= 0, "the page is wider than the window"
    assert page.evaluate(_BROKEN) == []
    unnamed = page.eval_on_selector_all(
        "a, button, input", "all => all.filter(e => !e.textContent.trim() && !e.ariaLabel && !e.labels?.length && !e.title).length"
    )
    assert unnamed == 0, "controls without a name for a screen reader"
    wanted = page.eval_on_selector_all("main a[href], main button", "all => all.filter(e => e.offsetParent).length")
    page.evaluate("() => document.activeElement?.blur()")
    reached = 0
    for _ in range(min(wanted, 15)):
        page.keyboard.press("Tab")
        reached += page.evaluate("() => document.activeElement !== document.body")
    assert reached == min(wanted, 15), "the keyboard does not reach the controls"


def check_page(started: Browser, path: Path, shots: Path | None = None) -> None:
    """Open a file at all widths, light and dark; with ``shots`` a screenshot of each goes to that folder."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            with opened(started, path.resolve().as_uri(), width=width, scheme=scheme) as page:
                expect_readable(page)
                if shots is not None:
                    page.screenshot(path=shots / f"{path.stem}_{width}_{scheme}.png", full_page=True)
