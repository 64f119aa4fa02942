"""A server on this machine alone that hands movies to a page; who does not know its token gets nothing of them."""

from __future__ import annotations

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
from ..inputs.shown import shown_movies
from ..settings.result_settings import ViewConfig
from ..step_control import Control
from .movies import Movies

HOST = "127.0.0.1"
PATIENCE_S = 5.0  # from the last tab's end to that of the program: a page that is loaded anew is back by then
KINDS = {"index.html": "text/html", "view.js": "text/javascript", "view.css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def view(config: ViewConfig, control: Control | None = None) -> Iterator[str]:
    """Show movies in a browser until all its tabs are closed, or a stop is asked for.

    Parameters
    ----------
    config : ViewConfig
    control : Control, optional

    Yields
    ------
    str
        What to tell the user: the address, and how to reach it from another computer.

    Raises
    ------
    InputError
        If a store is missing or damaged.
    ResourceError
        If the port is taken.
    """
    control = control or Control()
    movies = [Movies(shown_movies(path, config.movie)) for path in config.stores]
    token = secrets.token_urlsafe(24)
    server = open_server(movies, token, config.port or 0, Tabs(control.stop))
    port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, name="view", daemon=True)
    thread.start()
    page = None
    try:
        address = f"http://{HOST}:{port}/#{token}"
        yield f"Open {address}"
        yield (
            "From another computer, first type there: "
            f"ssh -L {port}:{HOST}:{port} {_user()}@{socket.gethostname()}"
        )
        yield "It ends with the last tab that shows it, or with Ctrl-C."
        if config.browser and _has_screen():
            page = _way_to(address)
            webbrowser.open(page.as_uri())
        control.stop.wait()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if page is not None:
            page.unlink(missing_ok=True)


def _way_to(address: str) -> Path:
    """A page that leads to an address: what a browser is started with can be read by everybody on the machine."""
    handle, name = tempfile.mkstemp(prefix="tdenoise-view-", suffix=".html")  # for its owner alone
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


def open_server(movies: list[Movies], token: str, port: int, tabs: Tabs) -> ThreadingHTTPServer:
    """A server that is ready to answer; on a free port where ``port`` is 0.

    Raises
    ------
    ResourceError
        If the port is taken, or this user may not have it.
    """
    handler = type("Handler", (_Handler,), {"movies": movies, "token": token, "tabs": tabs})
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        raise ResourceError(
            f"port {port} of this machine cannot be used ({error.strerror}). Give another --port, or none."
        ) from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that turns away meanwhile is no error."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    movies: list[Movies]
    token: str
    tabs: Tabs

    def do_GET(self) -> None:
        """The page, or what it asks for."""
        # A page elsewhere, whose name is made to lead here, calls us by that name.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (HOST, "localhost", "::1"):
            self._refuse(HTTPStatus.FORBIDDEN, "This address is for your own machine only.")
            return
        place = urlsplit(self.path)
        name = place.path.strip("/") or "index.html"
        if name in KINDS:
            data = resources.files(__package__).joinpath("page", name).read_bytes()
            self._answer(data, f"{KINDS[name]}; charset=utf-8")
        elif not secrets.compare_digest(self.headers.get("X-Token", "").encode(), self.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "Open the whole address that 'view' has printed.")
        else:
            self._ask(name, {key: values[-1] for key, values in parse_qs(place.query).items()})

    def _ask(self, name: str, words: dict[str, str]) -> None:
        try:
            if name == "about":
                self._json([movies.about() for movies in self.movies])
                return
            if name in ("opened", "closed"):
                (self.tabs.opened if name == "opened" else self.tabs.closed)(words["tab"][:64])
                self._json({})
                return
            if name not in ("frame", "trace"):
                self._refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name.")
                return
            numbers = {key: int(value) for key, value in words.items() if key != "layer"}
            movies = self.movies[numbers.pop("set")]
            if name == "frame":
                packed = movies.frame(words["layer"], **numbers)
                told = {"X-Offset": repr(packed.offset), "X-Scale": repr(packed.scale)}
                told["X-Shape"] = " ".join(map(str, packed.codes.shape))
                self._answer(packed.codes.tobytes(), "application/octet-stream", told)
            else:
                self._json(movies.trace(**numbers))
        except PipelineError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except (LookupError, TypeError, ValueError):
            self._refuse(HTTPStatus.BAD_REQUEST, "This question has no meaning here.")
        except ConnectionError:  # a browser that turns away
            raise
        except (
            OSError,
            MemoryError,
            ArithmeticError,
        ) as error:  # of the disk, of memory: the page shows it and goes on
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _json(self, document: Any) -> None:
        self._answer(json.dumps(document).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._answer(sentence.encode(), "text/plain; charset=utf-8", status=status)

    def _answer(
        self, data: bytes, kind: str, told: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self.send_response(status)
        policies = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        policies |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        for key, value in {"Content-Type": kind, **policies, **(told or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each frame would hide the address."""
