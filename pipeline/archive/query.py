"""Ask an archive: ``dose < 1 and sample like "Pt%" and frame_time in 5ms..20ms``.

A query is made of comparisons, joined by ``and``, ``or``, ``not`` and parentheses; a word on its own must occur
somewhere in the card. What a card does not tell never fits, nor does its contrary.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyparsing as pp

from ..errors import UsageError
from ..settings.parse import nanometres, seconds, size

Card = dict[str, Any]
Test = Callable[[Card], bool | None]  # None: the card does not tell

OPERATORS = ("<=", ">=", "!=", "=", "<", ">")
LEAST_OF_ID = 6  # letters of an id, to look for it
LATTICE = "lattice_nm"
DATES = ("added", "recorded")
DATE = r"\d{4}(-\d\d){0,2}([t ].*)?"
MOST_LETTERS, MOST_DEPTH = 4000, 50  # of a query


@dataclass(frozen=True)
class Key:
    """What can be asked of a card."""

    about: str
    read: Callable[[str], Any] = str  # a value as typed
    of: Callable[[Card], Any] | None = None  # where it is not an entry of the card


def _axis(number: int) -> Callable[[Card], Any]:
    return lambda card: None if card.get("shape") is None else card["shape"][number]


def _pixel(card: Card) -> Any:
    size_nm = card.get("pixel_size_nm")
    return None if size_nm is None else math.sqrt(size_nm[0] * size_nm[1])


def _dose_rate(card: Card) -> Any:
    pixel, frame_s, dose = _pixel(card), card.get("frame_time_s"), card.get("dose")
    return dose / pixel**2 / frame_s if dose and pixel and frame_s else None


KEYS = {
    "kind": Key("movie, denoised or model"),
    "name": Key("name of the store or model"),
    "id": Key("its id"),
    "path": Key("where it lies"),
    "added": Key("date and time at which it was added, such as 2026-11 or 2026-11-30"),
    "recorded": Key(
        "date and time of the recording, as the note 'recorded' or else the raw file tells it",
        of=lambda c: c.get("notes", {}).get("recorded") or c.get("recorded"),
    ),
    "recording": Key(
        "name of the raw movie, without its ending", of=lambda c: c.get("recording") or _recording(c)
    ),
    "frames": Key("number of frames", float, _axis(0)),
    "height": Key("rows of pixels", float, _axis(1)),
    "width": Key("columns of pixels", float, _axis(2)),
    "pixel_size": Key("such as 14pm", nanometres, _pixel),
    "frame_time": Key("such as 13ms", seconds, lambda c: c.get("frame_time_s")),
    "size": Key("on the disk, such as 1GB", size, lambda c: c.get("bytes")),
    "mean": Key("counts per pixel and frame", float),
    "dose": Key("electrons per pixel and frame", float),
    "dose_per_area": Key("electrons per square angstrom and frame", float),
    "gain": Key("counts per electron", float),
    "fano": Key("variance of the noise over the mean", float),
    "correlation": Key("of the noise of neighbouring pixels or frames, the strongest", float),
    "flicker": Key("of the brightness from frame to frame, as a share", float),
    "drift": Key("farthest that the scene drifts, in nm (in pixels without a pixel size)", float),
    "dose_rate": Key("electrons per square nanometre and second", float, _dose_rate),
    "voltage": Key("in kilovolts", float, lambda c: c.get("voltage_kv")),
    "camera": Key("name of the camera"),
    "format": Key("of the raw file", of=lambda c: (c.get("source") or {}).get("format")),
    "lattice": Key(
        "spacings of the lattice, such as 0.19nm; one of them must fit", nanometres, lambda c: c.get(LATTICE)
    ),
    "model_kind": Key("kind of network"),
    "version": Key("of the archive's base model", float),
    "steps": Key("of a training", float),
    "signal_shown": Key("share of the signal's variance that a denoised movie shows", float),
    "error": Key("mean squared error of a denoised movie, as a share of the noise variance", float),
    "smallest_event": Key(
        "smallest lasting change that can be dated to the frame, in typical columns", float
    ),
    "refuted_places": Key("places where the counts refute a denoised movie", float),
}


def _recording(card: Card) -> Any:
    name = (card.get("source") or {}).get("name")
    return None if name is None else str(name).rsplit(".", 1)[0]


def matching(cards: Iterable[Card], words: Iterable[str]) -> list[Card]:
    """Cards that fit every part of a query.

    Raises
    ------
    UsageError
        If it cannot be understood, or asks for something that no card knows.
    """
    test, everything = parse(list(words)), list(cards)
    noted = {name for card in everything for name in card.get("notes", {})}
    for key in test.asked:
        if key not in KEYS and key not in noted:
            near = difflib.get_close_matches(key, [*KEYS, *noted], n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join([*KEYS, *sorted(noted)])
            raise UsageError(f"{key!r} is nothing that cards of this archive know.{meant} They know {known}.")
    return [card for card in everything if test.fits(card)]


@dataclass(frozen=True)
class Query:
    """A query that was understood."""

    fits: Test
    asked: tuple[str, ...]  # keys of its comparisons
    words: bool  # whether it looks for words, wherever they stand


def parse(words: list[str]) -> Query:
    """Understand a query; several words must all fit."""
    text = " ".join(f"({word})" for word in words)
    if len(text) > MOST_LETTERS or text.count("(") > MOST_DEPTH + len(words):
        raise UsageError("the query is too long or too deeply nested.")
    asked: list[str] = []
    sought: list[str] = []
    try:
        found = _grammar(asked, sought).parse_string(text, parse_all=True)[0]
    except pp.ParseBaseException as error:
        left = text[error.loc :].strip("() ")
        where = f"at {left!r}" if left else "at its end"
        raise UsageError(
            f"the query {' '.join(words)!r} cannot be understood {where}. Write it like "
            "'dose < 1 and kind = movie', or give a word that must occur."
        ) from None
    except ValueError as error:
        raise UsageError(f"the query {' '.join(words)!r}: {error}.") from None
    return Query(found, tuple(dict.fromkeys(asked)), bool(sought))


def _grammar(asked: list[str], sought: list[str]) -> pp.ParserElement:
    reserved = pp.one_of("and or not like in", caseless=True, as_keyword=True)
    key = ~reserved + pp.Word(pp.alphas, pp.alphanums + "_")
    quoted = pp.QuotedString('"', esc_char="\\") | pp.QuotedString("'", esc_char="\\")
    value = quoted | pp.Regex(r"[^\s()\"'<>=!]+")
    bound = quoted | pp.Regex(r"[^\s()\"'<>=!]+?(?=\.\.)")

    def comparison(tokens: pp.ParseResults) -> Test:
        name, operator, wanted = tokens
        asked.append(name.lower())
        return _comparison(name.lower(), operator.lower(), wanted)

    def within(tokens: pp.ParseResults) -> Test:
        name, low, high = tokens
        asked.append(name.lower())
        return _within(name.lower(), low, high)

    compared = (key + (pp.one_of(OPERATORS) | pp.CaselessKeyword("like")) + value).set_parse_action(
        comparison
    )
    between = (
        key + pp.Suppress(pp.CaselessKeyword("in")) + bound + pp.Suppress("..") + value
    ).set_parse_action(within)

    def occurs(tokens: pp.ParseResults) -> Test:
        sought.append(tokens[0])
        return _occurs(tokens[0])

    word = (~reserved + value).set_parse_action(occurs)
    whole = pp.Forward()
    part = compared | between | pp.Suppress("(") + whole + pp.Suppress(")") | word
    negated = pp.Forward()
    negated <<= (pp.Suppress(pp.CaselessKeyword("not")) + negated).set_parse_action(
        lambda tokens: _negation(tokens[0])
    ) | part
    both = (negated + (pp.Suppress(pp.Optional(pp.CaselessKeyword("and"))) + negated)[...]).set_parse_action(
        lambda tokens: _all(tuple(tokens))
    )
    whole <<= (both + (pp.Suppress(pp.CaselessKeyword("or")) + both)[...]).set_parse_action(
        lambda tokens: _any(tuple(tokens))
    )
    query: pp.ParserElement = whole[1, ...].set_parse_action(lambda tokens: _all(tuple(tokens)))
    return query


def _all(tests: tuple[Test, ...]) -> Test:
    def fits(card: Card) -> bool | None:
        found = [test(card) for test in tests]
        return False if False in found else None if None in found else True

    return tests[0] if len(tests) == 1 else fits


def _any(tests: tuple[Test, ...]) -> Test:
    def fits(card: Card) -> bool | None:
        found = [test(card) for test in tests]
        return True if True in found else None if None in found else False

    return tests[0] if len(tests) == 1 else fits


def _negation(test: Test) -> Test:
    return lambda card: None if (found := test(card)) is None else not found


def _occurs(word: str) -> Test:
    wanted = word.lower()

    def is_in(text: str) -> bool:
        if re.fullmatch("[0-9a-f]{32,64}", text):  # an id or a hash: chance has any two letters in it
            return len(wanted) >= LEAST_OF_ID and text.startswith(wanted)
        return wanted in text

    return lambda card: any(map(is_in, _texts(card))) or wanted in map(str.lower, card.get("notes", {}))


def _texts(value: Any) -> Iterator[str]:
    """What stands in a card, without the names of its entries."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
    elif value is not None:
        yield str(value).lower()


def _comparison(name: str, operator: str, wanted: str) -> Test:
    """One comparison: of numbers, with units where a key has them; of dates as far as they are given; else of text."""
    key = KEYS.get(name)
    if operator == "like":
        pattern = re.compile(fnmatch.translate(_glob(wanted)), re.IGNORECASE)
        return lambda card: None if (found := _value(card, name)) is None else bool(pattern.match(str(found)))
    if key is not None and key.read is not str:
        try:
            number = key.read(wanted)
        except ValueError as error:
            raise ValueError(f"{name} cannot be {wanted!r}: {error}") from None
        return lambda card: _compared_any(_value(card, name), operator, number)
    if name in DATES and not re.fullmatch(DATE, wanted.lower()):
        raise ValueError(f"{name} cannot be {wanted!r}: write 2026, 2026-11, 2026-11-30 or 2026-11-30T18:00")
    if key is not None:
        return lambda card: _compared_text(_value(card, name), operator, wanted)
    noted = _number(wanted)

    def note(card: Card) -> bool | None:
        found = _value(card, name)
        if noted is not None and _number(found) is not None:
            return _compared(_number(found), operator, noted)
        if found is not None and noted is not None and operator not in ("=", "!=") and not _is_date(found):
            return None  # "300 C" is neither more nor less than 1000
        return _compared_text(found, operator, wanted)

    return note


def _within(name: str, low: str, high: str) -> Test:
    """A range; of several values, such as the spacings of a lattice, one must lie in it."""
    ends = _all((_comparison(name, ">=", low), _comparison(name, "<=", high)))

    def fits(card: Card) -> bool | None:
        if not isinstance(values := _value(card, name), list):
            return ends(card)
        return any(ends({**card, LATTICE: [value]}) for value in values) if values else None

    return fits


def _value(card: Card, name: str) -> Any:
    """What a card says under a name: its own entries first, then the notes of its users."""
    key = KEYS.get(name)
    if key is None:
        return card.get("notes", {}).get(name)
    return key.of(card) if key.of is not None else card.get(name)


def _glob(pattern: str) -> str:
    """``%`` stands for any text, as in SQL; nothing else is special."""
    return "*".join(re.sub(r"[\[*?]", lambda found: f"[{found[0]}]", part) for part in pattern.split("%"))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _compared(found: float | None, operator: str, wanted: float) -> bool | None:
    if found is None:
        return None
    if operator in ("=", "!="):
        return math.isclose(found, wanted, rel_tol=1e-6) == (operator == "=")
    return {"<": found < wanted, ">": found > wanted, "<=": found <= wanted, ">=": found >= wanted}[operator]


def _compared_any(found: Any, operator: str, wanted: float) -> bool | None:
    """Of several values, such as the spacings of a lattice, one must fit."""
    if not isinstance(found, list):
        return _compared(_number(found), operator, wanted)
    return any(_compared(_number(value), operator, wanted) for value in found) if found else None


def _is_date(value: Any) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\d([t ].*)?", str(value).lower()) is not None


def _compared_text(found: Any, operator: str, wanted: str) -> bool | None:
    """Text without regard to case; of a date, as many letters as are given: ``added > 2026-06`` is July and later."""
    if found is None:
        return None
    one, other = str(found).lower(), wanted.lower()
    if re.fullmatch(DATE, other) and _is_date(found):
        other = other.replace(" ", "t")
        one = one.replace(" ", "t")[: len(other)]
    return {
        "=": one == other,
        "!=": one != other,
        "<": one < other,
        ">": one > other,
        "<=": one <= other,
        ">=": one >= other,
    }[operator]
