"""The page of a report: text, pictures and a film in one file that loads nothing.

The browser runs one script and applies one style: those whose hashes stand in the page. What a file, a note or a unit
says is text and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from ..store import store
from . import sentences
from .training import Training

POLICY = (
    "default-src 'none'; img-src data:; media-src data: blob:; style-src {style}; script-src {script}; "
    "base-uri 'none'; form-action 'none'"
)


def fill(**values: Any) -> str:
    """The template of the page, filled in."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "decimals": decimals}
    style, script = (_part(f"report.{suffix}") for suffix in ("css", "js"))
    policy = POLICY.format(style=_hash(style), script=_hash(script))
    template = environment.from_string(_part("report.html.jinja"))
    return template.render(style=style, script=script, policy=policy, **values)


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a policy names a script or a style that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def provenance(
    movie: store.Store, denoised: store.Store, training: Training | None
) -> dict[str, dict[str, str]]:
    """Where everything came from, as groups of names and values."""
    source, made = movie.attributes["source"], denoised.attributes
    model: dict[str, Any] = {**made["model"]}
    if training is not None:
        card = training.card
        model |= {key: card.get(key) for key in ("steps", "best_step", "seed", "parent", "architecture")}
        model |= {f"training {k}": v for k, v in card.get("software", {}).items()}
    groups = {
        "Source": {key: value for key, value in source.items() if key != "metadata"},
        "Movie store": {
            "name": movie.path.name,
            "id": movie.id,
            "shape": movie.shape,
            "type": str(movie.array.dtype),
            "corrections": movie.attributes["corrections"],
            **_prefixed("software", movie.attributes["software"]),
        },
        "Model": model,
        "Denoised store": {
            "name": denoised.path.name,
            "id": denoised.id,
            **_prefixed("setting", made["settings"]),
            "devices": made["devices"],
            **_prefixed("software", made["software"]),
        },
    }
    return {name: {key: _plainly(value) for key, value in group.items()} for name, group in groups.items()}


def _plainly(value: Any) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int) for v in value):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix} {key}": value for key, value in values.items()}


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, an en dash where there is none.

    Examples
    --------
    >>> number(-0.0123456), number(1234.0), number(None)
    ('−0.0123', '1,234', '–')
    """
    return _typeset(None if value is None else sentences.number(value, digits))


def percent(value: float | None, digits: int = 3) -> str:
    """A share in percent, an en dash where there is none."""
    return _typeset(None if value is None else sentences.percent(value, digits))


def decimals(value: float | None, places: int = 2) -> str:
    """A number with a fixed number of decimals, an en dash where there is none."""
    return _typeset(None if value is None else f"{value:.{places}f}")


def _typeset(text: str | None) -> str:
    return "–" if text is None or text.startswith("nan") else text.replace("-", "−")
