"""A headless Chromium driven over the W3C WebDriver protocol: pages in, what a reader would see and click out.

The few calls needed are made directly, so that the tests need no package beside Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver names an element
KEYS = {
    "ArrowLeft": "\ue012",
    "ArrowRight": "\ue014",
    "Tab": "\ue004",
    "Home": "\ue011",
    "End": "\ue010",
    "Escape": "\ue00c",
}
WAIT_SECONDS = 20.0


def install_chromium() -> None:
    """Make chromium and chromedriver available: as they are, or by apt-get where root on Debian may install them.

    Raises RuntimeError where neither works.
    """
    if shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome")):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(
            "no chromium and chromedriver on PATH; install them (Debian: apt-get install chromium chromium-driver), "
            "or set SCORE_OPENRLHF_NO_BROWSER=1 to leave the browser tests out"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "chromium",
        "chromium-driver",
        "fonts-dejavu-core",
    ]
    for command in (["apt-get", "update"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed; install chromium and chromedriver: {done.stderr[-1000:]}")


class WebDriver:
    """One browser window. `close` ends the browser and its driver."""

    def __init__(self, *, width: int = 1280, height: int = 900, dark: bool = False):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        lines = iter(self.driver.stdout.readline, "")
        started = next((m for line in lines if (m := re.search(r"started successfully on port (\d+)", line))), None)
        if started is None:
            raise RuntimeError(f"chromedriver ended with status {self.driver.wait()} before it listened")
        self.root = f"http://127.0.0.1:{started.group(1)}"
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium refuses to run as root with it
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        options = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "pageLoadStrategy": "normal",
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.session = f"/session/{session['sessionId']}"
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page itself, also below what a desktop window may have."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700},
        )

    def open(self, page: Path) -> None:
        self._post("/url", {"url": page.absolute().as_uri()})
        self.wait(lambda: self.run("return document.documentElement.dataset.ready") == "true", f"{page} to be ready")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script's body in the page; returns what it returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def texts(self, selector: str) -> list[str]:
        """The visible text of every element that matches."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector)

    def click(self, selector: str) -> None:
        """Click where a reader would; fails if something covers the element."""
        element = self._find(selector)
        self.run("arguments[0].scrollIntoView({ block: 'center' })", {ELEMENT: element})
        self._post(f"/element/{element}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element; the names in KEYS stand for their keys."""
        self._post(f"/element/{self._find(selector)}/value", {"text": KEYS.get(text, text)})

    def hover(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        element = {ELEMENT: self._find(selector)}
        self.run("arguments[0].scrollIntoView({ block: 'center' })", element)
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": element}
        self._post("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {WAIT_SECONDS} s for {what}; the browser says {self.complaints()}")
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Errors and refused requests since the last call."""
        entries = self._post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path, *, whole_page: bool = False) -> None:
        shot = self._cdp("Page.captureScreenshot", {"captureBeyondViewport": whole_page})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._call("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait(timeout=10)
        assert self.driver.stdout is not None
        self.driver.stdout.close()

    def _find(self, selector: str) -> str:
        return self._post("/element", {"using": "css selector", "value": selector})[ELEMENT]

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", self.session + path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from error
