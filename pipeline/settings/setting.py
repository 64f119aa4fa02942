"""What settings are made of: frozen dataclasses that pydantic checks, and one sentence where a value has no meaning.

The same class takes text from the command line and from YAML, and values from Python. A field knows all that its help,
its flag and the generated reference say about it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from ..errors import UsageError

T = TypeVar("T")

# Of pydantic's errors, what the value must be.
_MUST_BE = {
    "bool_type": "it must be true or false",
    "finite_number": "it must be a finite number",
    "float_parsing": "it must be a number",
    "float_type": "it must be a number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be {ge} or more",
    "int_from_float": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_parsing_size": "it must be a whole number",
    "int_type": "it must be a whole number",
    "is_instance_of": "it must be text",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be one of {expected}",
    "path_type": "it must be a path",
    "string_type": "it must be text",
    "too_long": "it must have {max_length} values",
    "too_short": "it must name at least one",
    "tuple_type": "it must be a list",
    "value_error": "{error}",
}


class SettingError(UsageError):
    """A setting that is missing, unknown, or has a value without a meaning."""

    name: str  # of the setting
    reason: str  # what the value must be; empty where the setting itself is missing or unknown

    @classmethod
    def of(cls, text: str, name: str, reason: str = "") -> SettingError:
        """An error about one setting."""
        made = cls(text)
        made.name, made.reason = name, reason
        return made

    @classmethod
    def missing(cls, kind: type[Any], name: str) -> SettingError:
        """That a setting was not given."""
        about = {field.name: field.metadata["description"] for field in dataclasses.fields(kind)}
        return cls.of(f"{kind.__name__} needs {name}: {about[name]}.", name)


class _OneSentence(type):
    """Classes whose call turns what pydantic says into one sentence.

    Not a change of ``__init__``: pydantic makes that anew when it builds the class.
    """

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            made = super().__call__(*values, **named)
        except ValidationError as error:
            raise _sentence(cls, error) from None
        for field in dataclasses.fields(made):
            value = getattr(made, field.name)
            if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
                reason = "it holds a NUL character, which no file name can hold"
                text = f"{cls.__name__}: {field.name} {shown(value)} is not valid: {reason}."
                raise SettingError.of(text, field.name, reason)
        return made


class Settings(metaclass=_OneSentence):
    """What all settings are: frozen, with values that are checked however they are given, and nothing unknown.

    Raises
    ------
    SettingError
        When it is called with settings that have no meaning; one sentence about the first of them.
    """


@dataclass_transform(frozen_default=True)
def settings(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of settings of a subclass of `Settings`."""
    # Built when it is first needed: --help needs the words only.
    config = ConfigDict(extra="forbid", defer_build=True)
    made: Any = checked_dataclass(frozen=True, kw_only=kw_only, config=config)
    return cast("Callable[[type[T]], type[T]]", made)


def _sentence(kind: type[Any], error: ValidationError) -> SettingError:
    """The first error of pydantic in one sentence."""
    first = error.errors(include_url=False, include_input=True)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return SettingError.missing(kind, name)
    if first["type"] == "unexpected_keyword_argument":
        known = [field.name for field in dataclasses.fields(kind)]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {close[0]}?" if close else f"The settings are: {', '.join(known)}."
        return SettingError.of(f"{kind.__name__} has no setting {name!r}. {hint}", name)
    reason = _reason(first)
    text = f"{kind.__name__}: {name} {shown(first['input'])} is not valid: {reason}."
    return SettingError.of(text, name, reason)


def _reason(error: Any) -> str:
    values = {key: _plain(value) for key, value in error.get("ctx", {}).items()}
    if error["type"] == "greater_than" and values["gt"] == "0":
        return "it must be a positive number"
    template = _MUST_BE.get(error["type"])
    return error["msg"][:1].lower() + error["msg"][1:] if template is None else template.format(**values)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("'", "").replace(" or ", ", ") if isinstance(value, str) else str(value)


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
