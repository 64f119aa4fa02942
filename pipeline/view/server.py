"""The page of `view`: what it may ask about movies, and the command itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer

from ..inputs.shown import shown_movies
from ..local_page.server import PageHandler, Tabs, serving
from ..local_page.server import open_server as open_page_server
from ..settings.result_settings import ViewConfig
from ..step_control import Control
from .movies import Movies


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
    with serving(server, token, config.browser) as lines:
        yield from lines
        yield "It ends with the last tab that shows it, or with Ctrl-C."
        control.stop.wait()


def open_server(movies: list[Movies], token: str, port: int, tabs: Tabs) -> ThreadingHTTPServer:
    """A server of movies that is ready to answer; see `tdenoise_pipeline.local_page.server.open_server`."""
    return open_page_server(_Handler, port, token=token, movies=movies, tabs=tabs)


class _Handler(PageHandler):
    package = __package__
    program = "view"
    movies: list[Movies]
    tabs: Tabs

    def ask(self, name: str, words: dict[str, str]) -> None:
        if name == "about":
            self.answer_json([movies.about() for movies in self.movies])
            return
        if name in ("opened", "closed"):
            (self.tabs.opened if name == "opened" else self.tabs.closed)(words["tab"][:64])
            self.answer_json({})
            return
        if name not in ("frame", "trace"):
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name.")
            return
        numbers = {key: int(value) for key, value in words.items() if key != "layer"}
        movies = self.movies[numbers.pop("set")]
        if name == "frame":
            packed = movies.frame(words["layer"], **numbers)
            told = {"X-Offset": repr(packed.offset), "X-Scale": repr(packed.scale)}
            told["X-Shape"] = " ".join(map(str, packed.codes.shape))
            self.answer(packed.codes.tobytes(), "application/octet-stream", told)
        else:
            self.answer_json(movies.trace(**numbers))
