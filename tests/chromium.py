"""Chromium without a window, driven through a pipe by its DevTools protocol: the eyes of the HTML tests."""
import base64
import json
import os
import select
import shutil
import subprocess

NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
FLAGS = ("--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe").split()
SECONDS = 120  # without a word from the browser, after which a test fails


def find():
    """The path of a Chromium or Chrome on this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page in a browser with an empty profile in `folder`; `events` holds what the browser reported."""

    def __init__(self, path, folder):
        for_browser, self.to = os.pipe()
        self.by, from_browser = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root

        def connect():  # the browser reads from file 3 and writes to file 4
            ends = os.dup(for_browser), os.dup(from_browser)
            os.dup2(ends[0], 3), os.dup2(ends[1], 4)

        self.process = subprocess.Popen([path, *FLAGS, *sandbox, f"--user-data-dir={folder}"], close_fds=False,
                                        preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(for_browser), os.close(from_browser)
        self.events, self.unread, self.number, self.session = [], b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in "Page", "Runtime", "Log", "Network":
            self.call(f"{domain}.enable")

    def message(self):
        """The next message of the browser."""
        while b"\0" not in self.unread:
            if not select.select([self.by], [], [], SECONDS)[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self.by, 1 << 16)
            if not part:
                raise EOFError(f"Chromium has ended (exit status {self.process.wait(SECONDS)})")
            self.unread += part
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        """The result of a method of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (message := self.message()).get("id") != self.number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def open(self, url, width, height=900, scheme="light"):
        """Load a page in a window of `width` x `height` pixels, in a light or dark colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def value(self, expression):
        """The value of a JavaScript expression in the page; of a promise, what it comes to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", expression))
        return found["result"].get("value")

    def complaints(self):
        """What the browser has reported since the page was opened: errors, warnings and failed loads."""
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                yield params["exceptionDetails"]["exception"].get("description", "exception")
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                yield " ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                yield params["entry"]["text"]

    def requests(self):
        """The addresses that the page has asked for, data inside the file aside."""
        return [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"
                and not event["params"]["request"]["url"].startswith("data:")]

    def screenshot(self, file):
        """Write the window as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        try:
            self.session = {}
            self.call("Browser.close")
            self.process.wait(SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.to), os.close(self.by)
