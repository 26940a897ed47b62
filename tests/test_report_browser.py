"""The pages in a real browser: readable on a phone, and silent on the network."""

import functools
import html
import http.server
import json
import re
import shutil
import struct
import subprocess
import threading

import pytest
from samples import bare, plain, sample

from edgeprune import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on PATH: install it, for example with apt-get install chromium"
    ),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def long_names():
    """Words without a place to break, many runs of digits, many layers: what pushes a page wide."""
    record = sample()
    record["run"]["name"] = "a_run_name_without_any_place_to_break_it_" * 4
    record["run"]["command"] = "edgeprune build " + "/very/long/path" * 20
    record["target_title"] = "Target" * 30
    for layer in record["layers"]:
        layer["name"] = layer["name"] * 8
    record["layers"] *= 8
    record["candidates"]["final"].update(params=123_456_789_012, size_bytes=987_654_321_098)
    record["arm"]["runtime"] = "runtime" * 30
    record["recipe"]["stages"][1]["prune"]["comment"] = "unbroken" * 40
    return record


def comparison():
    other = plain()
    other["run"]["name"] = "another_run_with_a_long_name"
    return report.compare_html(report.compare([sample(), other, long_names(), bare()]))


PAGES = {
    "sample": lambda: report.html(sample()),
    "plain": lambda: report.html(plain()),
    "bare": lambda: report.html(bare()),
    "long_names": lambda: report.html(long_names()),
    "compare": comparison,
}


NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing that Chromium asks for leaves this machine


def chromium(folder, *arguments, proxy=NOWHERE):
    """Run Chromium once, with a profile of its own; returns what it prints."""
    own = [f"--user-data-dir={folder / 'profile'}", f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>"]
    command = [CHROMIUM, *FLAGS, *own, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def in_frame(page, width):
    """A page that shows another at a phone's width (a window of Chromium is never narrower than about 500 pixels)."""
    measure = """
        addEventListener("load", () => {
          const frame = document.querySelector("iframe"), inner = frame.contentDocument;
          for (const folded of inner.querySelectorAll("details")) folded.open = true;
          const root = inner.documentElement;
          const wide = [...inner.querySelectorAll("main *")].filter(
            (e) => e.getBoundingClientRect().right > root.clientWidth + 0.5
              && !e.closest(".scroll, pre, .layer .name"));
          document.querySelector("output").textContent = JSON.stringify({
            client: root.clientWidth, scroll: root.scrollWidth, body: inner.body.scrollWidth, height: root.scrollHeight,
            wide: wide.map((e) => e.tagName + "." + e.getAttribute("class")),
            font: Math.min(...[...inner.querySelectorAll("svg.chart text")].map(
              (e) => e.getBoundingClientRect().height)),
          });
        });
    """
    return (
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><output></output>'
        f'<iframe style="width:{width}px;height:4000px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        f"<script>{measure}</script>"
    )


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_never_scrolls_sideways(tmp_path, name, width):
    (tmp_path / "frame.html").write_text(in_frame(PAGES[name](), width), encoding="utf-8")
    dom = chromium(tmp_path, "--window-size=1400,900", "--dump-dom", f"file://{tmp_path}/frame.html")
    measured = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", dom).group(1)))
    assert measured["client"] == width
    assert measured["wide"] == []
    assert measured["scroll"] <= width
    assert measured["body"] <= width
    assert measured["height"] > 400
    if name == "sample":
        assert measured["font"] >= 9  # pixels: the words in the pictures can still be read


class Log(http.server.BaseHTTPRequestHandler):
    """A proxy that every request must go through, whatever its host; it answers with the page or an empty one."""

    def __init__(self, *args, page, asked, **kwargs):
        self.page, self.asked = page, asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        body = self.page.encode() if self.path == "http://report.test/" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self):
        self.asked.append(self.path)
        self.send_error(502)

    def log_message(self, *args):
        pass


# Clock, components and safe browsing, which no flag silences for good; our pages name no host at all (test_report.py).
CHROMIUMS_OWN = re.compile(r"^(https?://)?[\w.-]*\.(google|googleapis|gvt1)\.com[:/]")


def requests_of(page, folder):
    """Every address that Chromium asks for while it shows a page."""
    asked = []
    handler = functools.partial(Log, page=page, asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium(folder, "--dump-dom", "http://report.test/", proxy=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    return [address for address in asked if not CHROMIUMS_OWN.search(address)]


@pytest.mark.parametrize("name", PAGES)
def test_no_request_leaves_the_page(tmp_path, name):
    assert requests_of(PAGES[name](), tmp_path) == ["http://report.test/"]


TEMPTATION = (
    '<img src="http://elsewhere.test/a.png"><link rel="stylesheet" href="http://elsewhere.test/b.css">'
    '<script src="http://elsewhere.test/c.js"></script><iframe src="http://elsewhere.test/d"></iframe>'
)


def test_a_request_would_be_seen(tmp_path):
    """The test above can fail: without our policy, the same proxy sees what a page asks for."""
    asked = requests_of(f"<!doctype html><body>{TEMPTATION}", tmp_path)
    assert {f"http://elsewhere.test/{name}" for name in ("a.png", "b.css", "c.js", "d")} <= set(asked)


def test_the_policy_stops_what_slips_through_the_templates(tmp_path):
    page = report.html(sample()).replace("<main>", f"<main>{TEMPTATION}<script>document.title = 'ran'</script>")
    assert requests_of(page, tmp_path) == ["http://report.test/"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_picture_can_be_taken(tmp_path, width, scheme):
    """The page draws in both schemes, and they are not the same picture."""
    (tmp_path / "frame.html").write_text(in_frame(report.html(sample()), width), encoding="utf-8")
    picture = tmp_path / "page.png"
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    chromium(
        tmp_path, preferred, f"--window-size={width},1500", f"--screenshot={picture}", f"file://{tmp_path}/frame.html"
    )
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (width, 1500)
    image = pytest.importorskip("PIL.Image").open(picture).convert("L")
    histogram = image.histogram()
    brightness = sum(level * number for level, number in enumerate(histogram)) / sum(histogram)
    assert brightness < 90 if scheme == "dark" else brightness > 200
    assert sum(number > 0 for number in histogram) > 50  # words and bars, not an empty sheet
