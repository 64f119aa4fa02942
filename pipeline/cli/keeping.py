"""What the commands do that keep and find: those of archives and of models; imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..step_control import Control


def archive_cards(name: str) -> Callable[[Any, Control], dict[str, Any]]:
    def run(config: Any, control: Control) -> dict[str, Any]:
        from ..archive import archive

        return dict(getattr(archive, name)(config))

    return run


def archive_add(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.add import add

    return add(config, control)


def archive_html(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.html import write_html

    return write_html(config, control)


def archive_crate(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.crate import write_crate

    return write_crate(config, control)


def archive_suggest(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.suggest import suggest

    return suggest(config, control)


def archive_tag(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.notes import tag

    return tag(config)


def archive_verify(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.verify_archive import verify_archive

    return verify_archive(config, control)


def models_import(config: Any, control: Control) -> dict[str, Any]:
    from ..archive import bioimageio
    from ..train.import_udvd import import_model

    package = bioimageio.is_package(config.weights)
    card = bioimageio.import_package(config) if package else import_model(config)
    return {"model": str(config.output), **card}


def models_export(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.bioimageio import export_model

    return export_model(config, control)


def models_show(config: Any, control: Control) -> dict[str, Any]:
    from ..train.show_model import show_model

    return {**show_model(config)}
