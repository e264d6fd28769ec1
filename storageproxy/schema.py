"""
From untrusted tables (configuration, JSON bodies, token claims) to attrs classes.

The types of a class's fields say what is taken; :func:`structure` complains with a table of field
names, so that nobody has to guess which value was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, NewType, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.cols import mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    IterableValidationNote,
)

from storageproxy.vfolder import QuotaScopeID, VFolderID, file_name, relative_path

T = TypeVar("T")

#: A path inside a vfolder (:func:`storageproxy.vfolder.relative_path`).
RelativePath = NewType("RelativePath", str)
#: One such path, or a list of them.
RelativePaths = NewType("RelativePaths", list[str])
#: One name in a directory.
FileName = NewType("FileName", str)
#: A count of bytes: a whole number, or text such as ``100g`` or ``1GiB`` (powers of 1024).
ByteSize = NewType("ByteSize", int)
#: A time in seconds: a number, or text such as ``90``, ``1.5h``, ``1d`` or ``2w``.
Duration = NewType("Duration", float)
#: A flag as the original takes it: true, yes, 1, on, … in any letter case; null is false.
Flag = NewType("Flag", bool)
#: A text that is not blank.
Text = NewType("Text", str)

#: Items of the longest list.
MAX_ITEMS = 50_000

#: A size without a limit.
ENDLESS = 2**63 - 1

_TRUE = frozenset({"t", "true", "y", "yes", "on", "1", "1.0"})
_FALSE = frozenset({"false", "n", "no", "off", "0", "none", "0.0"})
_SIZE = re.compile(r"([0-9]{1,20})(\.[0-9]{1,20})?\s*([kmgtpezy])?(i?b(?:ytes?)?)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(yr|mo|[wdhm])?", re.IGNORECASE)
_UNIT_SECONDS = {
    "": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
    "mo": 30 * 86400,
    "yr": 365 * 86400,
}


class Complaint(ValueError):
    """
    A value is not what it has to be.

    :param fields: the dotted name of each wrong field, and what is wrong with it.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in fields.items()))
        self.fields = dict(fields)

    def nested(self) -> dict[str, Any]:
        """The complaints as tables in tables, as the original tells them."""
        top: dict[str, Any] = {}
        for name, why in self.fields.items():
            *above, last = name.split(".")
            table = top
            for step in above:
                table = table.setdefault(step, {})
            table[last] = why
        return top


def text(value: object) -> str:
    """A string as it is; numbers and the like are refused."""
    if not isinstance(value, str):
        raise ValueError("value is not a string")
    return value


def solid_text(value: object) -> str:
    """A string that is not blank."""
    if not text(value).strip():
        raise ValueError("blank value is not allowed")
    return text(value)


def flag(value: object) -> bool:
    """A flag in any of the spellings that the original takes."""
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("value can't be converted to Bool")


def whole_number(value: object) -> int:
    """A whole number, also as text."""
    if isinstance(value, bool):
        raise ValueError("value can't be converted to int")
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value):
        return int(value)
    raise ValueError("value can't be converted to int")


def number(value: object) -> float:
    """A number that is neither endless nor text."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError("value is not a number")


def byte_size(value: object) -> int:
    """A count of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError("a size cannot be negative")
        return value
    word = value.strip().replace("_", "") if isinstance(value, str) else ""
    if word.lower() in ("inf", "infinite", "infinity"):
        return ENDLESS
    found = _SIZE.fullmatch(word)
    # A fraction, and the "i" of "KiB", make sense with a unit only.
    if found is None or not found[3] and (found[2] or (found[4] or "b")[0] in "iI"):
        raise ValueError("expected a number of bytes such as 1073741824, 1g or 1GiB")
    factor = 1024 ** " kmgtpezy".index((found[3] or " ").lower())
    return int(Decimal(found[1] + (found[2] or "")) * factor)


def duration(value: object) -> float:
    """A time in seconds."""
    if isinstance(value, int | float):
        seconds = number(value)
    else:
        found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError("expected seconds, or a time such as 1.5h, 1d or 2w")
        seconds = float(found[1]) * _UNIT_SECONDS[(found[2] or "").lower()]
    if not 0 <= seconds < float("inf"):
        raise ValueError("a time cannot be negative or endless")
    return seconds


converter = cattrs.Converter()


@converter.register_structure_hook_factory(attrs.has)
def _tables_only(cls: type) -> Callable[[Any, Any], Any]:
    make: Callable[[Any, Any], Any] = converter.gen_structure_attrs_fromdict(cls)

    def hook(value: Any, wanted: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("value is not a table of names and values")
        return make(value, wanted)

    return hook


def _is_choice(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Enum)


@converter.register_structure_hook_factory(_is_choice)
def _choices(cls: type[Enum]) -> Callable[[Any, Any], Any]:
    choices = {choice.value: choice for choice in cls}

    def hook(value: Any, wanted: Any) -> Enum:
        # What is no text may not even be a key.
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return choices[value]

    return hook


def _is_table(cls: Any) -> bool:
    return get_origin(cls) in (dict, Mapping)


@converter.register_structure_hook_factory(_is_table)
def _mappings_only(cls: Any) -> Callable[[Any, Any], Any]:
    make = mapping_structure_factory(cls, converter)

    def hook(value: Any, wanted: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("value is not a table of names and values")
        return make(value, wanted)

    return hook


def _is_list(cls: Any) -> bool:
    origin: object = get_origin(cls)
    return origin is list


@converter.register_structure_hook_factory(_is_list)
def _lists_only(cls: Any) -> Callable[[Any, Any], Any]:
    (element,) = get_args(cls)
    make = converter.get_structure_hook(element)

    def hook(value: Any, _: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("value is not a list")
        if len(value) > MAX_ITEMS:
            raise ValueError(f"a list has {MAX_ITEMS} items at most")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(make(item, element))
            except (ValueError, BaseValidationError) as error:
                # The first complaint will do: there could be as many as there are items.
                raise Complaint(dict(_complaints(error, str(index)))) from None
        return items

    return hook


converter.register_structure_hook(str, lambda value, _: text(value))
converter.register_structure_hook(int, lambda value, _: whole_number(value))
converter.register_structure_hook(float, lambda value, _: number(value))


def register(wanted: object, hook: Callable[[Any], Any]) -> None:
    """
    Say how a type of field is made.

    :param wanted: the type, which may be a ``NewType``.
    :param hook: from the untrusted value; a ValueError is what its owner is told.
    """
    converter.register_structure_hook_func(
        lambda candidate: candidate is wanted, lambda value, _: hook(value)
    )


register(Text, solid_text)
register(Flag, flag)
register(ByteSize, byte_size)
register(Duration, duration)
register(RelativePath, lambda value: relative_path(text(value)))
register(
    RelativePaths,
    lambda value: (
        converter.structure(value, list[RelativePath])
        if isinstance(value, list)
        else [relative_path(text(value))]
    ),
)
register(FileName, lambda value: file_name(text(value)))
register(VFolderID, lambda value: VFolderID.parse(text(value)))
register(QuotaScopeID, lambda value: QuotaScopeID.parse(text(value)))


def structure(table: object, cls: type[T]) -> T:
    """
    Make an instance of an attrs class from a table; keys that the class does not know are ignored.

    :raises Complaint: naming each field that is missing or wrong.
    """
    try:
        return converter.structure(table, cls)
    except (BaseValidationError, ValueError) as error:
        raise Complaint(dict(_complaints(error, ""))) from None


def _complaints(error: BaseException, where: str) -> list[tuple[str, str]]:
    if isinstance(error, Complaint):
        return [(_join(where, name), why) for name, why in error.fields.items()]
    if not isinstance(error, BaseValidationError):
        if isinstance(error, KeyError) and where.rpartition(".")[2] == str(error.args[0]):
            return [(where, "is required")]
        return [(where, str(error) or type(error).__name__)]
    found: list[tuple[str, str]] = []
    for inner in error.exceptions:
        name = ""
        for note in getattr(inner, "__notes__", ()):
            if isinstance(note, AttributeValidationNote):
                name = note.name
            elif isinstance(note, IterableValidationNote):
                # The key of a table.
                name = str(note.index)
        if isinstance(error, ClassValidationError) and isinstance(inner, KeyError) and not name:
            name = str(inner.args[0])
        found += _complaints(inner, _join(where, name))
    return found


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where and name else where or str(name)
