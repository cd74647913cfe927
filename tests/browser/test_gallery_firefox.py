"""The gallery in Firefox: the same page without a server, its keys and its pictures."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

websocket = pytest.importorskip("tornado.websocket", reason="tornado is not installed")
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
pytestmark = pytest.mark.skipif(FIREFOX is None, reason="there is no firefox on the PATH")

KEYS = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Escape": "\ue00c"}
SEEN = """(async () => {  // the pictures of an element that can be loaded, of all
  const crops = [...document.querySelectorAll(SELECTOR)].map((node) => node.style.backgroundImage);
  const loads = await Promise.all(crops.filter(Boolean).map(async (text) => {
    const image = new Image();
    image.src = text.slice(5, -2);
    return image.decode().then(() => 1, () => 0);
  }));
  return loads.length && loads.every(Boolean);
})()"""


@dataclass
class Page:
    """A page in Firefox, driven by its own protocol, WebDriver BiDi."""

    socket: Any
    context: str = ""
    calls: int = 0
    wrong: list[str] = field(default_factory=list)

    async def call(self, method: str, **params: Any) -> Any:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        await self.socket.write_message(json.dumps(message))
        while True:
            found = json.loads(await self.socket.read_message())
            if found.get("method") == "log.entryAdded" and found["params"]["level"] == "error":
                self.wrong.append(found["params"]["text"])
            if found.get("id") == self.calls:
                assert found["type"] == "success", found
                return found["result"]

    async def get(self, expression: str) -> Any:
        target = {"context": self.context}
        found = await self.call(
            "script.evaluate", expression=expression, target=target, awaitPromise=True
        )
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + 20
        while not await self.get(expression):
            assert time.monotonic() < deadline, f"{expression}: {self.wrong}"
            await asyncio.sleep(0.05)

    async def open(self, address: Path, place: str = "") -> None:
        url = f"{address.as_uri()}{place}"
        await self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    async def press(self, *keys: str) -> None:
        actions = []
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                actions.append({"type": kind, "value": KEYS.get(key, key)})
        source = {"type": "key", "id": "keys", "actions": actions}
        await self.call("input.performActions", context=self.context, actions=[source])


async def in_firefox(profile: Path, gallery: Path) -> list[str]:
    """Walk through a gallery; return what went wrong in the page."""
    words = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile)]
    with subprocess.Popen(
        [*words, "--remote-debugging-port", "0"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            told = (re.search(r"listening on (ws://\S+)", line) for line in process.stderr)
            address = next(filter(None, told))[1]
            page = Page(await websocket.websocket_connect(f"{address}/session"))
            await page.call("session.new", capabilities={})
            await page.call("session.subscribe", events=["log.entryAdded"])
            tree = await page.call("browsingContext.getTree")
            page.context = tree["contexts"][0]["context"]
            await walk(page, gallery / "index.html")
            await page.call("browser.close")
            while await page.socket.read_message() is not None:
                pass
            page.socket.close()
            process.communicate(timeout=20)
        finally:
            process.kill()
    return page.wrong


async def walk(page: Page, address: Path) -> None:
    await page.open(address)
    await page.until("document.querySelectorAll('#overview .strip a').length > 9")
    await page.until(SEEN.replace("SELECTOR", "'#overview .crop'"))
    await page.open(address, "#conv2/0005")
    await page.until("document.title.startsWith('conv2/0005')")
    await page.until(SEEN.replace("SELECTOR", "'#unit .pane .crop'"))
    assert await page.get("document.querySelectorAll('.circuit a').length > 4")
    await page.press("ArrowRight")
    await page.until("document.title.startsWith('conv2/0006')")
    await page.get("document.querySelector('#unit .pane:nth-child(2) .zoom').click()")
    await page.until("document.querySelector('dialog[open] .frame')")
    await page.press("ArrowRight")
    await page.until("document.querySelector('dialog[open]').ariaLabel.includes('patch 2')")
    await page.press("Escape")
    await page.until("!document.querySelector('dialog[open]')")
    await page.press("/", *"class1")
    await page.until("document.querySelectorAll('#results a').length > 3")
    await page.press("Escape")
    await page.open(address, "#fc3?sort=max&show=patches")
    await page.until("document.querySelector('#layer select')?.value === 'max'")
    await page.until(SEEN.replace("SELECTOR", "'#grid .crop'"))
    assert await page.get("document.querySelectorAll('img').length === 0")


def test_a_gallery_works_in_firefox(gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    assert asyncio.run(in_firefox(tmp_path / "profile", gallery)) == []
