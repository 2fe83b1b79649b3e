"""A real browser: Debian's chromium, headless, driven over a pipe. It has no network, and everything it says is kept.

The protocol is Chrome DevTools: JSON messages that end with a NUL byte, on the browser's file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.support.child_server import ServerUnavailableError

VARIABLE = "PII_VAULT_TEST_CHROMIUM"
TIMEOUT = 60.0

_OPTIONS = (
    "--headless",
    # Its sandbox works neither for root nor in many containers; what is opened are our own pages.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


def program() -> str:
    """Return the browser's path.

    Raises:
        ServerUnavailableError: there is none.
    """
    found = os.environ.get(VARIABLE) or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise ServerUnavailableError(
            f"no chromium: install one (Debian: apt-get install chromium) or set {VARIABLE} to its path"
        )
    return found


def missing_browser() -> str | None:
    """Say why there is no browser, or None where there is one."""
    try:
        program()
    except ServerUnavailableError as error:
        return str(error)
    return None


class Browser:
    """One browser with one page.

    Attributes:
        opened: The addresses that were opened.
        requests: The addresses of everything that the page asked for, the page itself included, by the protocol's ids.
            What its own policy has stopped is none.
        complaints: What the browser's console said, and exceptions.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.requests: dict[str, str] = {}
        self.complaints: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="pii-vault-chromium-"))
        self._unread = b""
        self._number = 0
        self._loaded = False
        options = [*_OPTIONS, f"--user-data-dir={self._folder}"]
        ours, theirs = _pipes()
        self._read, self._write = ours
        try:
            self._process = subprocess.Popen(
                [program(), *options, "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # The protocol's descriptors are 3 and 4. All others of Python's close by themselves.
                preexec_fn=lambda: (os.dup2(theirs[0], 3), os.dup2(theirs[1], 4)),
                close_fds=False,
                start_new_session=True,
                env={**os.environ, "HOME": str(self._folder)},
            )
        finally:
            for each in theirs:
                os.close(each)
        self._session: str | None = None
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and remove what it wrote."""
        self._session = None
        try:
            self._call("Browser.close")
            self._process.wait(TIMEOUT)
        except (OSError, EOFError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._write)
            os.close(self._read)
            shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, file: Path, *, width: int = 1000, height: int = 1250, dark: bool = False) -> None:
        """Open a file, as wide as asked, in light or dark."""
        self._loaded = False
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = "dark" if dark else "light"
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.opened.append(file.as_uri())
        self._call("Page.navigate", url=file.as_uri())
        limit = time.monotonic() + TIMEOUT
        while not self._loaded:
            self._message(limit)

    def evaluate(self, expression: str) -> Any:
        """Return what JavaScript says about the page. It is the debugger's: the page's own policy is not asked."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, *, scale: float = 1.0) -> bytes:
        """Return a picture of what is seen of the page as PNG, made smaller if asked."""
        size = self._call("Page.getLayoutMetrics")["cssLayoutViewport"]
        clip = {"x": 0, "y": 0, "width": size["clientWidth"], "height": size["clientHeight"], "scale": scale}
        return base64.b64decode(self._call("Page.captureScreenshot", clip=clip)["data"])

    def pdf(self) -> bytes:
        """Return what a printer would get."""
        return base64.b64decode(self._call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + TIMEOUT
        while True:
            answer = self._message(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found

    def _message(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._read], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("chromium has ended")
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests[said["requestId"]] = said["request"]["url"]
        elif event == "Network.loadingFailed" and said.get("blockedReason") == "csp":
            del self.requests[said["requestId"]]
        elif event == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str(said["args"]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Make two pipes; return our ends and the browser's, each to read and to write, with numbers above 9."""
    to_browser, from_browser = os.pipe(), os.pipe()
    low = (from_browser[0], to_browser[1], to_browser[0], from_browser[1])
    ours_read, ours_write, theirs_read, theirs_write = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in low)
    for each in low:
        os.close(each)
    return (ours_read, ours_write), (theirs_read, theirs_write)


def pages(pdf: bytes) -> int:
    """Return how many pages a PDF of chromium's has: its page objects are not compressed."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
