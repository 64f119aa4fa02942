"""A server on this machine alone that hands a page to its user; who does not know its token gets nothing of it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import PipelineError, ResourceError

HOST = "127.0.0.1"
PATIENCE_S = 5.0  # from the last tab's end to that of the program: a page that is loaded anew is back by then
COMMON = "page.css"  # of this room; a page has its own files beside its server
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
MOST_BYTES = 2**16  # that a page may send at once
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Tabs:
    """Tabs that show the page.

    A tab that is loaded anew is closed and opened. One whose browser was killed, or that a broken tunnel cut off,
    counts as open for ever.

    Parameters
    ----------
    ended : threading.Event
        Set when all have been closed for a while.
    patience_s : float
    """

    def __init__(self, ended: threading.Event, patience_s: float = PATIENCE_S) -> None:
        self._ended, self._patience_s = ended, patience_s
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._timer: threading.Timer | None = None

    def opened(self, tab: str) -> None:
        """A tab shows the page, for the first time or again."""
        with self._lock:
            self._open.add(tab)
            if self._timer is not None:
                self._timer.cancel()

    def closed(self, tab: str) -> None:
        """A tab has left the page."""
        with self._lock:
            if tab not in self._open:
                return
            self._open.discard(tab)
            if not self._open:
                self._timer = threading.Timer(self._patience_s, self._end)
                self._timer.daemon = True
                self._timer.start()

    def _end(self) -> None:
        with self._lock:
            if not self._open:
                self._ended.set()


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request; a subclass says what its page may ask.

    Attributes
    ----------
    token : str
        Without which there is nothing but the page itself.
    package : str
        The package in whose folder ``page`` the files of the page lie.
    program : str
        Who serves the page, for messages.
    """

    protocol_version = "HTTP/1.1"
    token: str
    package: str
    program: str

    def ask(self, name: str, words: dict[str, str]) -> None:
        """Answer a question of the page; what has no meaning raises LookupError, TypeError or ValueError."""
        raise LookupError(name)

    def tell(self, name: str, document: dict[str, Any]) -> None:
        """Take what the page sends; as `ask`."""
        raise LookupError(name)

    def do_GET(self) -> None:
        """The page, or what it asks for."""
        place = urlsplit(self.path)
        name = place.path.strip("/") or "index.html"
        if not self._is_for_us():
            return
        if (data := self._file(name)) is not None:
            self.answer(data, f"{KINDS[Path(name).suffix]}; charset=utf-8")
        elif self._knows_token():
            self._attempt(
                lambda: self.ask(name, {key: values[-1] for key, values in parse_qs(place.query).items()})
            )

    def do_POST(self) -> None:
        """What the page sends: a JSON object."""
        self.close_connection = True  # what was refused is not read
        if self._is_for_us() and self._knows_token():
            self._attempt(lambda: self.tell(urlsplit(self.path).path.strip("/"), self._document()))

    def _document(self) -> dict[str, Any]:
        n_bytes = int(self.headers["Content-Length"])
        if not 0 <= n_bytes <= MOST_BYTES:
            raise ValueError("too long")
        document = json.loads(self.rfile.read(n_bytes))
        if not isinstance(document, dict):
            raise TypeError("no object")
        return document

    def _is_for_us(self) -> bool:
        # A page elsewhere, whose name is made to lead here, calls us by that name.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname in (HOST, "localhost", "::1"):
            return True
        self.refuse(HTTPStatus.FORBIDDEN, "This address is for your own machine only.")
        return False

    def _knows_token(self) -> bool:
        if secrets.compare_digest(self.headers.get("X-Token", "").encode(), self.token.encode()):
            return True
        self.refuse(HTTPStatus.FORBIDDEN, f"Open the whole address that '{self.program}' has printed.")
        return False

    def _file(self, name: str) -> bytes | None:
        """A file of the page, which has no folders; None if there is none of this name."""
        if "/" in name or "\\" in name or Path(name).suffix not in KINDS:
            return None
        file = resources.files(__package__ if name == COMMON else self.package).joinpath("page", name)
        return file.read_bytes() if file.is_file() else None

    def _attempt(self, answer: Any) -> None:
        try:
            answer()
        except PipelineError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except (LookupError, TypeError, ValueError):
            self.refuse(HTTPStatus.BAD_REQUEST, "This question has no meaning here.")
        except ConnectionError:  # a browser that turns away
            raise
        except (
            OSError,
            MemoryError,
            ArithmeticError,
        ) as error:  # of the disk, of memory: the page shows it and goes on
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def answer_json(self, document: Any) -> None:
        """Answer with a JSON document."""
        self.answer(json.dumps(document).encode(), "application/json")

    def refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Answer with one sentence why not."""
        self.answer(sentence.encode(errors="replace"), "text/plain; charset=utf-8", status=status)

    def answer(
        self, data: bytes, kind: str, told: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        """Answer with some bytes."""
        self.begin(kind, {**(told or {}), "Content-Length": str(len(data))}, status)
        self.wfile.write(data)

    def begin(self, kind: str, told: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        """The head of an answer."""
        self.send_response(status)
        policies = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        policies |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        for key, value in {"Content-Type": kind, **policies, **told}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each frame would hide the address."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that turns away meanwhile is no error."""


def open_server(handler: type[PageHandler], port: int, **given: Any) -> ThreadingHTTPServer:
    """A server that is ready to answer; on a free port where ``port`` is 0.

    Parameters
    ----------
    handler : type of PageHandler
    port : int
    **given
        Attributes of the handler: the token, and what it answers from.

    Raises
    ------
    ResourceError
        If the port is taken, or this user may not have it.
    """
    try:
        return _Server((HOST, port), type("Handler", (handler,), given))
    except OSError as error:
        raise ResourceError(
            f"port {port} of this machine cannot be used ({error.strerror}). Give another --port, or none."
        ) from None


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer, token: str, browser: bool) -> Iterator[list[str]]:
    """Serve while the block runs, and open the page where this machine has a screen.

    Yields
    ------
    list of str
        What to tell the user: the address, and how to reach it from another computer.
    """
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    port, way = server.server_address[1], None
    address = f"http://{HOST}:{port}/#{token}"
    try:
        if browser and _has_screen():
            way = _way_to(address)
            webbrowser.open(way.as_uri())
        yield [
            f"Open {address}",
            "From another computer, first type there: "
            f"ssh -L {port}:{HOST}:{port} {_user()}@{socket.gethostname()}",
        ]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if way is not None:
            way.unlink(missing_ok=True)


def _way_to(address: str) -> Path:
    """A page that leads to an address: what a browser is started with can be read by everybody on the machine."""
    handle, name = tempfile.mkstemp(prefix="tdenoise-page-", suffix=".html")  # for its owner alone
    with os.fdopen(handle, "w") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
    return Path(name)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container that knows no names
        return "YOU"


def _has_screen() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
