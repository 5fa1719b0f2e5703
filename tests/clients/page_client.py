"""The page in a real Chromium: a rollout driven by clicks, a gate that fails, a rollback, and what it looks like.

    pip install -r page.txt
    python page_client.py http://127.0.0.1:8080 screenshots chromium '<i>hostile</i>'

The server has digits with v1 live, v2, the broken v3, and a version of the last argument's name. Prints what was seen as
JSON; whoever runs it judges.
"""

import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
PATIENCE = 60_000
REASON = "<img src=x onerror=\"document.title='taken over'\">"

# When the live card came to show another version.
WATCH = """() => {
  const live = () => document.querySelector('#cards .live h3')?.textContent ?? null;
  window.seen = [[live(), Date.now()]];
  new MutationObserver(() => {
    if (live() !== window.seen.at(-1)[0]) window.seen.push([live(), Date.now()]);
  }).observe(document.getElementById('cards'), { childList: true, subtree: true, characterData: true });
}"""

# Texts whose contrast with what is behind them is below WCAG 2.2's 4.5 (success criterion 1.4.3), and fields without a name.
FAULTS = """() => {
  const light = (rgb) => rgb.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const rgb = parse(getComputedStyle(element).backgroundColor);
      if (rgb.length < 4 || rgb[3] > 0) return rgb;
    }
    return [255, 255, 255];
  };
  const faults = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest('svg, noscript, :disabled')) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faults.push(`${element.nodeName} ${element.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  for (const field of document.querySelectorAll('input, select, textarea, button, canvas, [role=region], svg[role=img]')) {
    if (field.checkVisibility() && !field.labels?.length && !field.ariaLabel && !field.textContent.trim()) faults.push(`${field.nodeName} ${field.id} has no name`);
  }
  return faults;
}"""


class Watched:
    """What the browser asks for and complains of."""

    def __init__(self, page):
        self.errors, self.hosts, self.bytes = [], set(), 0
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.dataReceived", self.received)

    def received(self, event):
        self.bytes += event["dataLength"]


def order(page, button, reason=""):
    page.click(button)
    page.wait_for_selector("#sure[open]")
    page.fill("#reason", reason)
    page.press("#reason", "Enter")


def phases(page):
    return [text.strip() for text in page.locator("#rollout .phases li").evaluate_all("all => all.map((li) => li.firstChild.data)")]


def live(page, version):
    page.wait_for_function("v => document.querySelector('#cards .live h3')?.textContent === v", arg=version, timeout=PATIENCE)


def phase(page, name):
    page.wait_for_function(
        "name => [...document.querySelectorAll('#rollout .phases li.now, #rollout .phases li.ill')].some((li) => li.firstChild.data === name)",
        arg=name, timeout=PATIENCE,
    )


def drive(page, watched, shots, hostile):
    seen = {}
    page.wait_for_selector("#latency svg", timeout=PATIENCE)
    page.wait_for_selector("#history", state="attached")
    live(page, "v1")
    seen["bytes"] = watched.bytes
    page.evaluate(WATCH)

    page.select_option("#version", "v2")
    order(page, "#promote", REASON)
    phase(page, "observing")
    live(page, "v2")
    seen["promoted"] = phases(page)
    seen["reason"] = page.inner_text("#rollout")
    page.wait_for_selector("#rollout [aria-label=Rules] td", timeout=PATIENCE)
    page.click("[aria-label='Write a 7 and ask']")
    page.wait_for_selector("#try .answer td")
    seen["answer"] = page.inner_text("#try .answer")
    page.wait_for_function("() => document.querySelector('#latency').innerHTML.includes('--switch')", timeout=PATIENCE)
    shoot(page, shots, "observing")

    page.click("#rollback")
    page.wait_for_selector("#sure[open]")
    page.keyboard.press("Enter")  # the button that says so has the focus
    live(page, "v1")
    page.wait_for_function("() => document.querySelector('#history td.bad')?.textContent === 'rolled back'", timeout=PATIENCE)

    page.wait_for_function("() => !document.getElementById('promote').disabled", timeout=PATIENCE)
    page.select_option("#version", "v3")
    order(page, "#promote")
    phase(page, "refused")
    seen["refused"] = page.locator("#gate table").first.inner_text()
    seen["verdict"] = page.inner_text("#gate p")
    shoot(page, shots, "refused")
    live(page, "v1")

    page.select_option("#version", hostile)
    order(page, "#stage", REASON)
    phase(page, "ready")
    seen["hostile"] = page.inner_text("#cards .candidate h3")
    seen["images"] = page.locator("img").count()
    seen["title"] = page.title()
    order(page, "#abort")
    phase(page, "aborted")

    seen["switches"] = page.evaluate("window.seen")
    page.focus("#try canvas")
    for key in ["Space", *["ArrowDown"] * 8, "Enter"]:
        page.keyboard.press(key)
    page.wait_for_function("() => document.querySelector('#try .answer')?.innerText.includes('answered by v1')", timeout=PATIENCE)
    seen["by keyboard"] = page.inner_text("#try .answer")
    seen["history"] = page.inner_text("#history")
    seen["figures"] = page.inner_text("#figures")
    return seen


def shoot(page, shots, name):
    for scheme in ["light", "dark"]:
        page.emulate_media(color_scheme=scheme)
        for width in [1280, 360]:
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=shots / f"{name}-{scheme}-{width}.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def faults(page):
    found = []
    for scheme in ["light", "dark"]:
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {fault}" for fault in page.evaluate(FAULTS)]
    return found


@contextmanager
def browser(chromium):
    """A Chromium with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True, args=FLAGS, viewport={"width": 1280, "height": 900},
            color_scheme="light", reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


def main():
    url, shots, chromium, hostile = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    shots.mkdir(parents=True, exist_ok=True)
    with browser(chromium) as context:
        page = context.pages[0]
        watched = Watched(page)
        page.goto(url)
        seen = drive(page, watched, shots, hostile)
        page.set_viewport_size({"width": 360, "height": 800})
        seen["width"] = page.evaluate("document.scrollingElement.scrollWidth")
        seen["faults"] = faults(page)
        seen["errors"], seen["hosts"] = watched.errors, sorted(watched.hosts)
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
