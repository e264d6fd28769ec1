"""
Validators, preconditions and ranges of a file (RFC 9110 sections 8.8, 13 and 14).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum

from attrs import frozen
from werkzeug.http import http_date, parse_date, parse_etags

from storageproxy.errors import RangeNotSatisfiable

#: More ranges than this in one request are answered with the whole file.
MAX_RANGES = 16

#: The years 1 and 9999, beyond which dates cannot be written, in seconds since the epoch.
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799

_RANGE = re.compile(r"([0-9]*)-([0-9]*)")


class Verdict(Enum):
    """What the preconditions of a request say."""

    PROCEED = "send it"
    NOT_MODIFIED = "304"
    FAILED = "412"


@frozen
class Validators:
    """
    What tells one state of a file from another.

    :param etag: the strong entity tag, with its quotes, as nodes of the original write it.
    :param modified: seconds since the epoch, rounded up so that no change hides in a fraction.
    """

    etag: str
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Validators:
        """
        :param status: the ``fstat`` of the open file.
        """
        seconds = -(-status.st_mtime_ns // 1_000_000_000)
        # A file can have any time; a date has a year of four digits.
        return cls(
            f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
            min(max(seconds, FIRST_SECOND), LAST_SECOND),
        )

    @property
    def last_modified(self) -> str:
        """The value of ``Last-Modified``."""
        return http_date(self.modified)


@frozen
class ByteRange:
    """
    A run of bytes.

    :param start: the offset of its first byte.
    :param stop: the offset behind its last byte.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """The value of ``Content-Range`` for a file of this many bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def evaluate(headers: Mapping[str, str], validators: Validators) -> Verdict:
    """
    The preconditions of a GET or HEAD, in the order of RFC 9110 section 13.2.2.

    :param headers: of the request, by their names in lower case.
    """
    if "if-match" in headers:
        if not _matches(headers["if-match"], validators.etag, strong=True):
            return Verdict.FAILED
    elif (limit := _date(headers.get("if-unmodified-since"))) is not None:
        if validators.modified > limit:
            return Verdict.FAILED
    if "if-none-match" in headers:
        if _matches(headers["if-none-match"], validators.etag, strong=False):
            return Verdict.NOT_MODIFIED
    elif (since := _date(headers.get("if-modified-since"))) is not None:
        if validators.modified <= since:
            return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def select(headers: Mapping[str, str], validators: Validators, size: int) -> list[ByteRange] | None:
    """
    Which bytes a GET asks for.

    What cannot be read as byte ranges is refused like a range beyond the end, and ``-0`` means
    all: both as the original has it, which clients that resume rely on.

    :param headers: of the request, by their names in lower case.
    :param size: bytes of the file.
    :return: ranges in the order asked for, or None for the whole file.
    :raises RangeNotSatisfiable: when no byte can be sent.
    """
    asked = headers.get("range")
    if asked is None or not _range_holds(headers.get("if-range"), validators):
        return None
    unit, _, specs = asked.partition("=")
    if unit.strip().lower() != "bytes":
        raise RangeNotSatisfiable(size)
    ranges = []
    for spec in specs.split(",") if specs.count(",") < MAX_RANGES else ():
        found = _RANGE.fullmatch(spec.strip())
        if found is None or spec.strip() == "-":
            raise RangeNotSatisfiable(size)
        ranges.append(_resolve(found[1], found[2], size))
    if not ranges:
        return None
    satisfiable = [chosen for chosen in ranges if chosen is not None]
    if not satisfiable:
        raise RangeNotSatisfiable(size)
    # Ranges that overlap would let a small request ask for many copies of the file.
    if len(satisfiable) > 1 and sum(map(len, satisfiable)) > size:
        return None
    return satisfiable


def _resolve(first: str, last: str, size: int) -> ByteRange | None:
    if not first:
        wanted = _number(last)
        start = 0 if wanted == 0 else max(0, size - wanted)
        return ByteRange(start, size) if size else None
    start, stop = _number(first), _number(last) + 1 if last else size
    if start >= stop and last:
        raise RangeNotSatisfiable(size)
    return ByteRange(start, min(stop, size)) if start < size else None


def _number(digits: str) -> int:
    """A count of bytes; one that no file has is as good as any other such."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 20 else 10**19


def _range_holds(condition: str | None, validators: Validators) -> bool:
    if condition is None:
        return True
    condition = condition.strip()
    if condition.startswith(('"', "W/", "w/")):
        return condition == validators.etag
    return _date(condition) == validators.modified


def _matches(condition: str, etag: str, strong: bool) -> bool:
    tags = parse_etags(condition)
    opaque = etag.strip('"')
    return bool(tags.contains(opaque) if strong else tags.contains_weak(opaque))


def _date(value: str | None) -> int | None:
    try:
        parsed = parse_date(value) if value else None
        return None if parsed is None else int(parsed.timestamp())
    except (OverflowError, ValueError):
        return None
