"""The screenshots of docs/seeing.md: real commands on real digits, and pictures of their pages by the machine's Chromium.

Run it from the repository: python tools/screenshots.py (needs the extras demo, viz, serve and browser; about two minutes).
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RECIPE = "configs/cls/quickstart.yaml"
WIDTH, HEIGHT = 1100, 760  # pixels


@dataclass(frozen=True)
class Shot:
    """A screenshot: its file, its page in the working folder, and the section to scroll to."""

    name: str
    page: str
    section: str = ""
    scheme: Literal["light", "dark"] = "light"
    height: int = HEIGHT


SHOTS = (
    Shot("data_report", "report_of_data/data_report.html", "findings"),
    Shot("preview", "preview/preview.html", "samples"),
    Shot("report", "runs/a/report.html"),
    Shot("mistakes", "runs/a/report.html", "mistakes", scheme="dark"),
    Shot("compare", "compare/compare.html"),
    Shot("issues", "runs/noisy/issues/issues.html"),
)


def main() -> None:
    """Write every screenshot anew."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        make_pages(folder)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        IMAGES.mkdir(exist_ok=True)
        for shot in SHOTS:
            with opened(browser, (folder / shot.page).as_uri(), shot.scheme, shot.height) as page:
                if shot.section:
                    page.evaluate(f"() => document.getElementById('{shot.section}').scrollIntoView({{behavior: 'instant'}})")
                save(page, shot.name)
        with serving(folder) as url, opened(browser, url, "light", 900) as page:
            digits = sorted((folder / "data/digits/images").glob("*.png"))[:3]
            page.set_input_files("input[type=file]", [str(path) for path in digits])
            page.wait_for_timeout(2000)
            save(page, "serve")
        browser.close()


def make_pages(folder: Path) -> None:
    """Prepare digits with a few faults, train two networks, and write the pages about them."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    call(folder, str(ROOT / "tools/prepare_digits.py"), "--out", "data/digits")
    images = folder / "data/digits/images"
    faulty = folder / "faulty/train"
    for number, path in enumerate(sorted(images.glob("*.png"))[:300]):
        target = faulty / path.stem.partition("_")[2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if number % 97 == 3:
            shutil.copy(path, faulty / "zero" / f"copy_{path.name}")
        if number % 120 == 7:
            target.write_bytes(path.read_bytes()[:200])
    call(folder, "-m", "up", "data", "check", "--train", "faulty/train", "--out", "report_of_data", fails=True)
    call(folder, "-m", "up", "preview", RECIPE, "--out", "preview")
    for run, changes in (("a", ["trainer.max_epoch=4"]), ("b", ["trainer.max_epoch=3", "runtime.random_seed=1"])):
        call(folder, "-m", "up", "train", RECIPE, "--opts", f"saver.save_dir=runs/{run}", *changes)
    call(folder, "-m", "up", "report", "runs/a")
    call(folder, "-m", "up", "compare", "runs/a", "runs/b", "--out", "compare")
    flip_labels(folder / "data/digits/val.txt")
    call(folder, "-m", "up", "train", RECIPE, "--opts", "saver.save_dir=runs/noisy", "trainer.max_epoch=8")
    call(folder, "-m", "up", "data", "issues", "runs/noisy")
    call(folder, "-m", "up", "to_kestrel", RECIPE, "--opts", "saver.save_dir=runs/a", "to_kestrel.save_to=package")


def flip_labels(path: Path) -> None:
    """Give one image of twenty another label."""
    rows = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{name} {(int(label) + 3 * (at % 20 == 5)) % 10}\n" for at, (name, label) in enumerate(rows)))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the package of ``folder`` while pictures are taken; gives the address of its page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    package = next((folder / "package").rglob("*.tar"))
    server = subprocess.Popen([sys.executable, "-m", "up", "serve", str(package), "--port", str(port)], cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        yield f"{url}/"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened(browser: Browser, url: str, scheme: Literal["light", "dark"], height: int) -> Iterator[Page]:
    """Open a page in a window of the size of a screenshot."""
    context = browser.new_context(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url, wait_until="load")
    yield page
    context.close()


def save(page: Page, name: str) -> None:
    """Save what the window shows, in 128 colours: a fifth of the bytes."""
    page.wait_for_timeout(300)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
    print(f"docs/images/{name}.png: {(IMAGES / f'{name}.png').stat().st_size // 1000} kB")


def call(folder: Path, *words: str, fails: bool = False) -> None:
    """Run a Python command in ``folder``."""
    code = subprocess.run([sys.executable, *words], cwd=folder, check=False).returncode
    if code and not fails:
        sys.exit(f"{' '.join(words)}: exit code {code}")


if __name__ == "__main__":
    main()
