# -*- test-case-name: tests.test_purestorage_dialect -*-
"""
What differs between the versions of the REST API of a FlashBlade.

Source: the vendor's clients, ``purity_fb`` 1.12.3 for 1.x and ``py-pure-client`` 1.96.0 for 2.x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

#: The versions that are spoken: all from the first one up to the last one.
OLDEST, NEWEST = (1, 8), (2, 29)

_VERSION = re.compile(r"([12])\.([0-9]{1,3})(?:\.([0-9]{1,3}))?")


@frozen
class Dialect:
    """
    One of the two generations of the API.

    :param continuation: the parameter that asks for the next page.
    :param pagination: the table of a page that has the token for it; None when that is at the top.
    :param name: the parameter that names what is changed.
    :param unlimited: the ``provisioned`` that takes the limit of a file system away.
    """

    continuation: str
    pagination: str | None
    name: str
    unlimited: int | str


V1 = Dialect("token", "pagination_info", "name", 0)
V2 = Dialect("continuation_token", None, "names", "")


def parse(version: str) -> tuple[int, ...] | None:
    """
    :param version: as in a path, such as ``1.8.1``.
    :return: its numbers; None when it is none that is spoken.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        return None
    numbers = tuple(int(number) for number in found.groups() if number is not None)
    return numbers if OLDEST <= numbers and numbers[:2] <= NEWEST else None


def newest(offered: Iterable[str]) -> str | None:
    """
    :param offered: the versions of an array.
    :return: the best one of them; None when none is spoken.
    """
    known = [(numbers, version) for version in offered if (numbers := parse(version))]
    return max(known)[1] if known else None


def dialect(version: str) -> Dialect:
    """The generation of a version."""
    return V1 if version.startswith("1.") else V2
