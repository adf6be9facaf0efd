"""A headless Chromium, driven over a pipe by the DevTools protocol: no package and no network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
           "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--mute-audio")  # fmt: skip
WAIT = 60.0


def executable() -> str | None:
    """Where Chromium is; None if it is not on this machine. `SINKTRAIN_CHROMIUM` names one elsewhere."""
    return os.environ.get("SINKTRAIN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in one browser; `complaints` are what it said in the console since the page was opened."""

    def __init__(self, program: str, folder: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # (what it reads, what we write), (what we read, what it writes)
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}', program, *OPTIONS,
                   f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env=os.environ | {"HOME": str(folder)},
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read = os.fdopen(ours[1], "wb", buffering=0), os.fdopen(theirs[0], "rb")
        self._number, self._session = 0, ""
        self._events: deque[dict[str, Any]] = deque()
        self._watch = threading.Timer(WAIT, self._process.kill)  # a browser that hangs ends as a closed pipe
        self._watch.start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._number:
            self._events.append(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            text += byte
        return dict(json.loads(text))

    def open(self, page: Path, width: int, theme: str) -> None:
        """Loads a page at a width in CSS pixels, in `light` or `dark`."""
        self._watch.cancel()
        self._watch = threading.Timer(WAIT, self._process.kill)
        self._watch.start()
        self._events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", "failed"))
        return found["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """Console messages of warnings and errors, uncaught exceptions, log entries, failed requests."""
        self.run("0")  # what it had to say before this has been said
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"}
        spoken = [e for e in self._events if e["method"] == "Runtime.consoleAPICalled"]
        loud = [e for e in spoken if e["params"]["type"] in ("error", "warning", "assert")]
        return [json.dumps(e["params"]) for e in (*(e for e in self._events if e["method"] in kinds), *loud)]

    @property
    def requests(self) -> list[str]:
        """The address of everything that was fetched."""
        sent = [event for event in self._events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Ends it."""
        self._session = ""
        with contextlib.suppress(RuntimeError, OSError):
            self.call("Browser.close")
        self._watch.cancel()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._write.close()
        self._read.close()
