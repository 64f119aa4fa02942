"""What the page of `watch` may ask, and what it may send."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from ..local_page.server import PageHandler
from .session import Session
from .shown import Shown

ALIVE_S = 2.0  # between two signs of life to a tab
LAYERS = ("raw", "denoised")


class WatchHandler(PageHandler):
    """Tells a tab whatever changes, as server-sent events; hands out pictures; takes decisions."""

    package = __package__
    program = "watch"
    shown: Shown
    session: Session

    def ask(self, name: str, words: dict[str, str]) -> None:
        """The events, or a picture of the newest look."""
        if name == "events":
            self._events()
        elif name == "picture":
            look = self.shown.look
            layer = LAYERS.index(words["layer"])
            picture = None if look is None else (look.raw, look.denoised)[layer]
            if look is None or picture is None or look.number != int(words["number"]):
                self.refuse(HTTPStatus.GONE, "There is a newer one.")
                return
            told = {"X-Shape": " ".join(map(str, picture.shape))}
            self.answer(picture.tobytes(), "application/octet-stream", told)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name.")

    def tell(self, name: str, document: dict[str, Any]) -> None:
        """A decision, a note, or which recording to look at."""
        if name == "decide":
            self.session.decide(str(document["id"]), document)
        elif name == "show":
            chosen = document["id"]
            self.shown.choose(None if chosen is None else self.session.by_id(str(chosen)).name)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name.")
            return
        self.answer_json({})

    def _events(self) -> None:
        """The state whenever it changes, until the tab goes or the command ends."""
        self.close_connection = True
        self.begin("text/event-stream; charset=utf-8", {"Connection": "close"})
        version, ended = -1, False
        while not ended:
            version, state = self.shown.wait(version, ALIVE_S)
            if state is None:
                self.wfile.write(b":\n\n")
            else:
                ended = state["ended"]
                self.wfile.write(b"data: " + json.dumps(state).encode() + b"\n\n")
            self.wfile.flush()
