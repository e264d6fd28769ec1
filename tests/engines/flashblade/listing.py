"""
The parameters that all listings take: names, filters, order and pages.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from attrs import frozen

from tests.engines.flashblade.array import Refused

Item = dict[str, Any]

_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[()]|(?:and|or|not)\b)
    |(?P<path>[A-Za-z_][\w.]*)\s*(?P<operator>!=|<=|>=|=|<|>)\s*
     (?P<value>'[^']*'|"[^"]*"|-?\d+(?:\.\d+)?|true\b|false\b|null\b))\s*""",
    re.VERBOSE,
)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": lambda mine, theirs: mine < theirs,
    ">": lambda mine, theirs: mine > theirs,
    "<=": lambda mine, theirs: mine <= theirs,
    ">=": lambda mine, theirs: mine >= theirs,
}


@frozen
class Query:
    """
    The parameters of a request, of which each comes once.

    :ivar given: name to value.
    """

    given: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """A parameter as it is; none when it is not given, or empty."""
        return self.given.get(name) or None

    def names(self, name: str) -> list[str]:
        """A list, which is written with commas."""
        return [one for one in (self.text(name) or "").split(",") if one]

    def number(self, name: str) -> int | None:
        """A number that is not negative."""
        text = self.text(name)
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,18}", text):
            raise Refused(400, f"Invalid {name}.")
        return int(text)

    def flag(self, name: str) -> bool | None:
        """True or false; Python's clients write them as Python does."""
        text = (self.text(name) or "").lower()
        if text not in ("", "true", "false"):
            raise Refused(400, f"Invalid {name}.")
        return {"true": True, "false": False}.get(text)


@frozen
class Page:
    """
    A part of a listing.

    :ivar selected: all that was asked for, of all pages.
    :ivar token: to go on with; none when nothing is left, or the order is not the array's own.
    """

    items: list[Item]
    selected: list[Item]
    token: str | None

    @classmethod
    def select(
        cls, items: list[Item], query: Query, token_name: str, start_name: str, most: int
    ) -> Page:
        """
        Find what is asked for.

        :param items: all that there are.
        :param token_name: the parameter with the token of the page before.
        :param start_name: the parameter that says how many to leave out.
        :param most: items of one page.
        """
        selected = sorted(items, key=lambda item: str(item["name"]))
        for key in ("names", "ids"):
            if wanted := query.names(key):
                selected = _named(selected, key[:-1], wanted)
        if text := query.text("filter"):
            selected = [item for item in selected if matches(text, item)]
        order = query.names("sort")
        for name in reversed(order):
            path = name.removesuffix("-")
            selected.sort(key=lambda item: _sortable(_value(item, path)), reverse=path != name)
        left = selected
        if token := query.text(token_name):
            last = _read_token(token)
            left = [item for item in left if str(item["name"]) > last]
        left = left[query.number(start_name) or 0 :]
        limit = query.number("limit")
        limit = most if limit is None else min(limit, most)
        page = [] if query.flag("total_only") else left[:limit]
        more = bool(page) and len(page) < len(left) and not order
        return cls(page, selected, _make_token(str(page[-1]["name"])) if more else None)


def matches(text: str, item: Item) -> bool:
    """
    Whether a filter lets an item through: comparisons with ``and``, ``or``, ``not`` and brackets.

    :raises Refused: it is none, or more than is understood here.
    """
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise Refused(400, "Invalid filter.", text)
        tokens.append(found)
        position = found.end()
    tokens.reverse()

    def take(*marks: str) -> str | None:
        if tokens and tokens[-1]["mark"] in marks:
            return tokens.pop()["mark"]
        return None

    def alternatives() -> bool:
        holds = conditions()
        while take("or"):
            holds = conditions() or holds
        return holds

    def conditions() -> bool:
        holds = condition()
        while take("and"):
            holds = condition() and holds
        return holds

    def condition() -> bool:
        if take("not"):
            return not condition()
        if take("("):
            holds = alternatives()
            if not take(")"):
                raise Refused(400, "Invalid filter.", text)
            return holds
        if not tokens or tokens[-1]["mark"]:
            raise Refused(400, "Invalid filter.", text)
        return _holds(tokens.pop(), item)

    holds = alternatives()
    if tokens:
        raise Refused(400, "Invalid filter.", text)
    return holds


def _holds(comparison: re.Match[str], item: Item) -> bool:
    mine, written = _value(item, comparison["path"]), comparison["value"]
    theirs: Any = written[1:-1]
    if written[0] not in "'\"":
        theirs = json.loads(written)
    elif not isinstance(mine, str):
        # Clients write numbers and flags as text, too.
        theirs = _read_json(theirs.lower())
    operator = comparison["operator"]
    if operator in ("=", "!="):
        texts = isinstance(mine, str) and isinstance(theirs, str)
        same = fnmatchcase(mine, theirs) if texts else mine == theirs
        return bool(same == (operator == "="))
    try:
        return mine is not None and _COMPARE[operator](mine, theirs)
    except TypeError:
        raise Refused(400, "Invalid filter.", comparison[0]) from None


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _named(items: list[Item], key: str, wanted: list[str]) -> list[Item]:
    """Those that are named, in that order; all of them have to exist."""
    by_key = {item[key]: item for item in items}
    for one in wanted:
        if one not in by_key:
            raise Refused(400, "Object does not exist.", one)
    return [by_key[one] for one in dict.fromkeys(wanted)]


def _value(item: Item, path: str) -> Any:
    value: Any = item
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise Refused(400, "Invalid field.", path)
        value = value[part]
    return value


def _sortable(value: Any) -> tuple[bool, Any]:
    return value is not None, value if value is not None else 0


def _make_token(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode()
    except ValueError:
        raise Refused(400, "Invalid continuation token.") from None
