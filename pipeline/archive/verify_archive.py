"""Check an archive: every card, and everything that the cards refer to."""

from __future__ import annotations

from typing import Any

from tdenoise.network import checkpoint

from ..errors import InputError, PipelineError, VerificationError
from ..settings.archive_settings import ArchiveVerifyConfig
from ..settings.result_settings import VerifyConfig
from ..settings.results import is_archive
from ..step_control import Control
from ..store import foreign
from .card import CARDS, Card, card_order, read_card
from .look import PICTURES, kept_picture
from .place import place_of
from .verify import verify


def verify_archive(config: ArchiveVerifyConfig, control: Control | None = None) -> dict[str, Any]:
    """Check all cards, and all that they name; every fault is told, not only the first.

    Raises
    ------
    VerificationError
    """
    control = control or Control()
    archive, faults, n_cards = config.archive, [], 0
    if not is_archive(archive):
        raise InputError(archive, "is no archive")
    files = sorted((archive / CARDS).glob("[!.]*"), key=lambda file: card_order(file.name))
    latest: dict[str, Card] = {}
    for file in files:
        try:
            card = read_card(file)
            latest[card["id"]] = card
        except InputError as error:
            faults.append(str(error))
    for card in latest.values():
        control.check("archive verify")
        control.progress("archive verify", n_cards, len(latest))
        n_cards += 1
        if card.get("picture") and kept_picture(archive, card["id"], card["picture"]) is None:
            faults.append(
                f"{archive / PICTURES / card['id']}.png: is missing, or not the picture of {card['name']}."
            )
        try:
            path = place_of(card, archive)
            if links := foreign.links_in(path):
                raise InputError(links[0], "is a symbolic link")
            if card["kind"] == "model":
                checkpoint.load_model(path, card["id"])
            else:
                verify(VerifyConfig(store=path, deep=config.deep))
        except (PipelineError, checkpoint.ModelError) as error:
            faults.append(str(error))
    if faults:
        raise VerificationError(f"{archive}: {len(faults)} faults. " + " ".join(faults[:20]))
    return {"archive": str(archive), "n_cards": n_cards, "deep": config.deep}
