"""The report as a browser shows it, at the widths of a phone and of a screen, and printed."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PHONE, SCREEN = 390, 1100  # pixels

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium")

# Asked of the page within a frame: a window of a browser without a screen may not be as narrow as a phone.
ASK = """<!DOCTYPE html><title>waiting</title><body style="margin:0">
<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, inner = page.documentElement;
  const broken = [...page.images].filter(image => !image.complete || !image.naturalWidth).length;
  const wide = [...page.querySelectorAll("body *")].filter(part => !part.closest(".wide") &&
    part.getBoundingClientRect().right > {width} + 1).map(part => part.tagName);
  const bars = page.querySelectorAll(".bar > span").length;
  document.title = [inner.scrollWidth, page.images.length, broken, bars, wide.join(",")].join("|");
}}</script>"""


def browse(profile: Path, *arguments: str) -> str:
    """What a browser without a network prints."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_it_fits_and_every_picture_is_shown(report, tmp_path, width):
    asking = tmp_path / "ask.html"
    asking.write_text(ASK.format(width=width, page=html.escape(report)))
    shown = browse(tmp_path / "profile", f"--window-size={max(width, 800)},800", "--dump-dom", asking.as_uri())
    (title,) = re.findall("<title>(.*?)</title>", shown)[:1]
    scroll, images, broken, bars, wide = title.split("|")
    assert int(scroll) <= width, wide
    assert wide == ""
    assert int(images) == report.count("<img")
    assert int(broken) == 0
    assert int(bars) > 0


def test_it_can_be_printed(report, tmp_path):
    page, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(report)
    browse(tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={printed}", page.as_uri())
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
