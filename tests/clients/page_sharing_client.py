"""The page while versions share requests, and while its server is silent, gone, and back.

    pip install -r page.txt
    python page_sharing_client.py http://127.0.0.1:8080 screenshots chromium 4711

The server has digits with v1 live and v2, answers requests, and is the process of the last argument, which is stopped, goes on,
and is killed; whoever runs this starts another at the same address then. Prints what was seen as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

from page_client import PATIENCE, Watched, browser, live, order, phase, shoot

EXPERIMENT = """() => fetch('/admin/experiments', {
  method: 'POST', headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ name: 'tone', weights: { v1: 50, v2: 50 } }),
}).then((response) => response.status)"""


# Bars that are higher than nothing.
BARS = """() => [...document.querySelectorAll('#agreement svg rect')]
  .some((bar) => bar.getAttribute('fill') === 'var(--p50)' && Number(bar.getAttribute('height')) > 1)"""


def text(page, place, pattern):
    page.wait_for_function(
        "([place, pattern]) => new RegExp(pattern).test(document.querySelector(place)?.innerText)", arg=[place, pattern],
        timeout=PATIENCE,
    )


def ordered(page, name):
    """What a button orders, with nothing said."""
    page.click(name)
    page.wait_for_selector("#sure[open]")
    page.keyboard.press("Enter")


def share(page, shots):
    seen = {}
    page.select_option("#version", "v2")
    page.click("#promote")
    page.wait_for_selector("#sure[open]")
    for field, value in [("#canary", "25, 50"), ("#canary-step", "10m"), ("#shadow", "1")]:
        page.fill(field, value)
    page.press("#shadow", "Enter")
    phase(page, "canary")
    text(page, "#cards .candidate", "25 %")
    seen["shares"] = page.locator("#cards dl").all_inner_texts()
    seen["meter"] = page.get_attribute("#rollout meter", "value")
    text(page, "#rollout", "Shadow before the switch: [1-9]")
    page.wait_for_function(BARS, timeout=PATIENCE)
    seen["histogram"] = page.get_attribute("#agreement svg", "aria-label")
    seen["canary"] = page.inner_text("#rollout")
    shoot(page, shots, "canary")
    ordered(page, "#rollback")
    phase(page, "rolled back")
    page.wait_for_function("() => !document.getElementById('promote').disabled")

    seen["asked"] = page.evaluate(EXPERIMENT)
    phase(page, "experiment")
    text(page, "#rollout", "v2 .50 %.: [1-9]")
    seen["experiment"] = page.inner_text("#rollout")
    shoot(page, shots, "experiment")
    ordered(page, "#rollout [data-experiment]")
    phase(page, "ready")
    seen["stopped"] = page.locator("#rollout [data-experiment]").count()
    return seen


def silent(page, server):
    """A server that says nothing, although its connections stand: `page` has a clock that is moved on by hand."""
    seen = {}
    os.kill(server, signal.SIGSTOP)
    try:
        page.clock.fast_forward(5_000)
        text(page, "#link", "stale")
        seen["stale"] = [page.inner_text("#link"), page.is_disabled("#stage"), page.get_attribute("#main", "class")]
        page.clock.fast_forward(8_000)
        text(page, "#link", "not connected")
        seen["dead"] = page.inner_text("#link")
    finally:
        os.kill(server, signal.SIGCONT)
    page.clock.fast_forward(1_000)
    page.wait_for_selector("#link.on")
    seen["again"] = [page.inner_text("#link"), page.is_disabled("#stage"), page.get_attribute("#main", "class")]
    return seen


def gone(page, server):
    os.kill(server, signal.SIGKILL)
    page.wait_for_selector("#link:not(.on)")
    text(page, "#link", "not connected")
    seen = {"gone": page.inner_text("#link")}
    page.wait_for_selector("#link.on")
    live(page, "v1")
    page.wait_for_function("() => !document.getElementById('promote').disabled")
    seen["back"] = page.inner_text("#link")
    return seen


def main():
    url, shots, chromium, server = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    shots.mkdir(parents=True, exist_ok=True)
    with browser(chromium) as context:
        page = context.pages[0]
        watched = Watched(page)
        page.goto(url)
        live(page, "v1")
        seen = share(page, shots)
        other = context.new_page()
        other.clock.install()
        other.goto(url)
        other.wait_for_selector("#link.on")
        seen |= silent(other, server)
        other.close()
        # What follows is no fault of the page's, and the browser complains of it.
        seen["errors"] = list(watched.errors)
        seen |= gone(page, server)
        print(json.dumps(seen))


main()
