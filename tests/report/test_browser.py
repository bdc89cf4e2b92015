"""The report in a browser: nothing is cut off, too small, missing or blocked."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000""".split()
MEASURE = """
<!DOCTYPE html><meta charset="utf-8"><pre id="out"></pre><script>
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, small = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement;
    if (!text.data.trim()) continue;
    const svg = parent.closest('svg');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(getComputedStyle(parent).fontSize) * scale;
    if (size < (svg ? 10 : 12)) small.push([parent.tagName, text.data.slice(0, 20), size]);
  }
  const wide = [...page.querySelectorAll('main *')].filter(
    element => !element.closest('.scroll') && element.getBoundingClientRect().right > root.clientWidth + 1);
  const images = [...page.images];
  return {
    width: root.clientWidth, scroll: root.scrollWidth, small, wide: wide.map(element => element.outerHTML.slice(0, 80)),
    images: images.length, broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    drawings: page.querySelectorAll('svg').length, family: getComputedStyle(page.querySelector('svg text')).fontFamily,
  };
}
window.onload = () => {
  document.getElementById('out').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(measure));
};
</script>
"""


@pytest.fixture(scope="module")
def measured(page, tmp_path_factory) -> tuple[list[dict], str]:
    """Measurements of the page at the widths of a desktop and a phone, and the messages on the browser's console."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")
    frames = [f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in (1280, 390)]
    (folder / "wrapper.html").write_text(MEASURE + "".join(frames))
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        (folder / "wrapper.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found[1])), console


@pytest.mark.parametrize("index", [0, 1], ids=["desktop", "phone"])
def test_nothing_is_cut_off_or_too_small(measured, index):
    view = measured[0][index]
    assert view["scroll"] <= view["width"] and view["wide"] == [], view["wide"]
    assert view["small"] == []
    assert view["images"] >= 20 and view["broken"] == 0 and view["drawings"] >= 8
    assert "DejaVu" not in view["family"]


def test_browser_reports_no_errors(measured):
    assert measured[1] == ""
