# -*- test-case-name: tests.test_conditional -*-
"""
Validators, preconditions and ranges, against a plain model of RFC 9110.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.conditional import (
    MAX_RANGES,
    ByteRange,
    Validators,
    Verdict,
    evaluate,
    select,
)
from storageproxy.errors import RangeNotSatisfiable
from tests.strategies import QUICK, SLOW, header_values

MODIFIED = 1_600_000_000
CURRENT = Validators('"162f-5"', MODIFIED)


def http_date(seconds: int) -> str:
    """A date as in RFC 9110 section 5.6.7, by other means than the code's own."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@frozen
class Tag:
    """An entity tag, without its quotes."""

    weak: bool
    opaque: str

    def __str__(self) -> str:
        return f'{"W/" if self.weak else ""}"{self.opaque}"'


#: A list of tags, or a star.
TagList = list[Tag] | str
TAGS = st.builds(
    Tag,
    st.booleans(),
    st.sampled_from(["162f-5", "162f-6", "162F-5", "x,y", "*", "", "a b", "\u00e9", "W/"]),
)
TAG_LISTS = st.just("*") | st.lists(TAGS, min_size=1, max_size=4)
#: A date around that of the file, or a text that is none.
DATES = st.sampled_from(
    [MODIFIED - 86400, MODIFIED - 1, MODIFIED, MODIFIED + 1, MODIFIED + 10**8]
) | st.sampled_from(["", "yesterday", "1600000000", "Sun, 99 Sep 2020 12:26:40 GMT"])


def model(
    if_match: TagList | None,
    if_unmodified_since: int | str | None,
    if_none_match: TagList | None,
    if_modified_since: int | str | None,
) -> Verdict:
    """RFC 9110 section 13.2.2 for a GET of the current file, step by step."""
    current = CURRENT.etag.strip('"')
    if if_match is not None:
        if if_match != "*" and not any(
            tag.opaque == current and not tag.weak for tag in if_match if isinstance(tag, Tag)
        ):
            return Verdict.FAILED
    elif isinstance(if_unmodified_since, int) and MODIFIED > if_unmodified_since:
        return Verdict.FAILED
    if if_none_match is not None:
        if if_none_match == "*" or any(
            tag.opaque == current for tag in if_none_match if isinstance(tag, Tag)
        ):
            return Verdict.NOT_MODIFIED
    elif isinstance(if_modified_since, int) and MODIFIED <= if_modified_since:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


class ValidatorTests(SynchronousTestCase):
    """What is said of the state of a file."""

    @SLOW
    @given(st.integers(-(10**18), 4 * 10**18), st.integers(0, 10))
    @example(0, 0)
    @example(1_600_000_000_000_000_000, 5)
    @example(1_600_000_000_000_000_001, 5)
    @example(1_599_999_999_999_999_999, 5)
    def test_of(self, nanoseconds: int, size: int) -> None:
        """
        The date is rounded up, so that no change hides in a fraction, and the tag is the one that
        nodes of the original give.
        """
        path = Path(self.mktemp())
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(0, nanoseconds))
        status = path.stat()
        validators = Validators.of(status)
        self.assertEqual(validators.etag, f'"{status.st_mtime_ns:x}-{size:x}"')
        self.assertLess((validators.modified - 1) * 10**9, status.st_mtime_ns)
        self.assertGreaterEqual(validators.modified * 10**9, status.st_mtime_ns)

    @QUICK
    @given(st.integers(0, 4 * 10**9))
    def test_last_modified(self, seconds: int) -> None:
        """The date is told in the one format that RFC 9110 has for it, in GMT."""
        value = Validators('"x"', seconds).last_modified
        self.assertEqual(parsedate_to_datetime(value).timestamp(), seconds)
        self.assertEqual(value, http_date(seconds))

    def test_own_date_is_current(self) -> None:
        """Who sends back the date that he was told is told that nothing has changed."""
        headers = {"if-modified-since": CURRENT.last_modified}
        self.assertEqual(evaluate(headers, CURRENT), Verdict.NOT_MODIFIED)
        self.assertEqual(
            evaluate({"if-unmodified-since": CURRENT.last_modified}, CURRENT), Verdict.PROCEED
        )


class PreconditionTests(SynchronousTestCase):
    """The conditional headers."""

    @QUICK
    @given(
        st.none() | TAG_LISTS,
        st.none() | DATES,
        st.none() | TAG_LISTS,
        st.none() | DATES,
        st.sampled_from([", ", ",", " , ", ",\t"]),
    )
    def test_model(
        self,
        if_match: TagList | None,
        if_unmodified_since: int | str | None,
        if_none_match: TagList | None,
        if_modified_since: int | str | None,
        comma: str,
    ) -> None:
        """All of them together are evaluated in the order of the RFC."""
        headers = {}
        for name, tags in (("if-match", if_match), ("if-none-match", if_none_match)):
            if tags is not None:
                headers[name] = tags if isinstance(tags, str) else comma.join(map(str, tags))
        for name, date in (
            ("if-unmodified-since", if_unmodified_since),
            ("if-modified-since", if_modified_since),
        ):
            if date is not None:
                headers[name] = date if isinstance(date, str) else http_date(date)
        self.assertEqual(
            evaluate(headers, CURRENT),
            model(if_match, if_unmodified_since, if_none_match, if_modified_since),
            headers,
        )

    def test_nothing_asked(self) -> None:
        """Without them the file is sent."""
        self.assertEqual(evaluate({}, CURRENT), Verdict.PROCEED)

    def test_date_formats(self) -> None:
        """Dates are read in all three formats that a recipient has to know."""
        validators = Validators('"x"', 784_111_777)
        for date in (
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ):
            headers = {"if-modified-since": date}
            self.assertEqual(evaluate(headers, validators), Verdict.NOT_MODIFIED, date)
            self.assertEqual(
                evaluate(headers, Validators('"x"', 784_111_778)), Verdict.PROCEED, date
            )

    def test_absurd_dates(self) -> None:
        """A date that no calendar has is ignored, as any other text that is none."""
        for date in (
            "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
            "Mon, 01 Jan 99999999999 00:00:00 GMT",
            "Thu, 01 Jan 1970 00:00:00 +99999999999999",
            "Mon, 99999999999999999999 Jan 1970 00:00:00 GMT",
            "Mon, 01 Jan 1970 99999999999999999999:00:00 GMT",
        ):
            for name in ("if-modified-since", "if-unmodified-since"):
                self.assertEqual(evaluate({name: date}, CURRENT), Verdict.PROCEED, date)
            headers = {"if-range": date, "range": "bytes=0-0"}
            self.assertIsNone(select(headers, CURRENT, 5), date)

    @QUICK
    @given(
        st.dictionaries(
            st.sampled_from(
                ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
            ),
            header_values(),
            min_size=1,
        )
    )
    def test_garbage(self, headers: dict[str, str]) -> None:
        """Whatever they say, there is a verdict."""
        self.assertIsInstance(evaluate(headers, CURRENT), Verdict)


#: ``a-b``, ``a-`` and ``-n``.
Spec = tuple[int | None, int | None]
NUMBERS = st.integers(0, 12) | st.sampled_from([10**9, 2**63, 10**19 - 1])
SPECS = st.tuples(NUMBERS, st.none() | NUMBERS) | st.tuples(st.none(), NUMBERS)


def written(specs: list[Spec]) -> str:
    """The value of a Range header."""
    return "bytes=" + ", ".join(
        f"{'' if first is None else first}-{'' if last is None else last}" for first, last in specs
    )


def resolve(specs: list[Spec], size: int) -> list[ByteRange] | None:
    """
    What ranges mean (RFC 9110 section 14.1.2), and what the original makes of those that mean
    nothing: None if the whole is refused, else those that can be sent.
    """
    chosen = []
    for first, last in specs:
        if first is None:
            assert last is not None
            bytes_ = list(range(size))[-last:]
        elif last is not None and first > last:
            return None
        else:
            bytes_ = [n for n in range(size) if n >= first and (last is None or n <= last)]
        if bytes_:
            chosen.append(ByteRange(bytes_[0], bytes_[-1] + 1))
    return chosen or None


class RangeTests(SynchronousTestCase):
    """Which bytes are asked for."""

    def assertRefused(self, value: str, size: int) -> None:
        """Assert that a Range header is answered with 416 and the size."""
        error = self.assertRaises(RangeNotSatisfiable, select, {"range": value}, CURRENT, size)
        self.assertEqual(error.status, 416)
        self.assertEqual(error.headers["Content-Range"], f"bytes */{size}")

    @QUICK
    @given(SPECS, st.integers(0, 10))
    def test_one(self, spec: Spec, size: int) -> None:
        """One range is the bytes that it names, or 416 when the file has none of them."""
        expected = resolve([spec], size)
        if expected is None:
            self.assertRefused(written([spec]), size)
        else:
            self.assertEqual(select({"range": written([spec])}, CURRENT, size), expected)

    @QUICK
    @given(st.lists(SPECS, min_size=2, max_size=6), st.integers(0, 12))
    def test_many(self, specs: list[Spec], size: int) -> None:
        """
        Ranges that have no byte in common are sent in the order asked for. Those that have are
        never more than the file itself, for which the whole of it is sent.
        """
        expected = resolve(specs, size)
        if expected is None:
            self.assertRefused(written(specs), size)
            return
        selected = select({"range": written(specs)}, CURRENT, size)
        if sum(map(len, expected)) > size and len(expected) > 1:
            self.assertIsNone(selected)
        else:
            self.assertEqual(selected, expected)

    def test_quirks(self) -> None:
        """What clients of the original rely on, case by case."""
        for value, size, expected in (
            ("bytes=0-", 5, ByteRange(0, 5)),
            ("bytes=0-4", 5, ByteRange(0, 5)),
            ("bytes=4-", 5, ByteRange(4, 5)),
            ("bytes=0-999", 5, ByteRange(0, 5)),
            ("bytes=-2", 5, ByteRange(3, 5)),
            ("bytes=-0", 5, ByteRange(0, 5)),
            ("bytes=-999", 5, ByteRange(0, 5)),
            ("Bytes=1-1", 5, ByteRange(1, 2)),
            ("bytes=0-" + "9" * 5000, 5, ByteRange(0, 5)),
        ):
            self.assertEqual(select({"range": value}, CURRENT, size), [expected], value)
        for value, size in (
            ("bytes=5-", 5),
            ("bytes=5-6", 5),
            ("bytes=3-2", 5),
            ("bytes=0-0", 0),
            ("bytes=0-", 0),
            ("bytes=-1", 0),
            ("items=0-1", 5),
            ("bytes", 5),
            ("bytes=", 5),
            ("bytes=-", 5),
            ("bytes=x-y", 5),
            ("bytes=1", 5),
            ("bytes=--1", 5),
            ("bytes=0-1-2", 5),
            ("bytes=0x0-0x1", 5),
            ("bytes=\u00b2-3", 5),
            ("", 5),
            ("bytes=" + "9" * 5000 + "-", 5),
        ):
            self.assertRefused(value, size)

    def test_not_asked(self) -> None:
        """Without a Range header there is no range."""
        self.assertIsNone(select({}, CURRENT, 5))
        self.assertIsNone(select({"if-range": CURRENT.etag}, CURRENT, 5))

    def test_limit(self) -> None:
        """Sixteen ranges are served, and of more the whole file."""
        self.assertEqual(MAX_RANGES, 16)
        for count, served in ((16, True), (17, False), (1000, False)):
            specs = ",".join(f"{2 * n}-{2 * n}" for n in range(count))
            selected = select({"range": f"bytes={specs}"}, CURRENT, 10_000)
            self.assertEqual(selected is not None, served, count)

    @QUICK
    @given(header_values() | st.text("bytes=0123456789-, ", max_size=30), st.integers(0, 30))
    def test_garbage(self, value: str, size: int) -> None:
        """Whatever is asked for, the answer is 416, the whole, or bytes that the file has."""
        try:
            selected = select({"range": value}, CURRENT, size)
        except RangeNotSatisfiable:
            return
        if selected is not None:
            self.assertTrue(selected)
            self.assertLessEqual(len(selected), MAX_RANGES)
            for chosen in selected:
                self.assertTrue(0 <= chosen.start < chosen.stop <= size)

    @QUICK
    @given(st.integers(0, 10**12), st.integers(1, 10**12), st.integers(0, 10**12))
    def test_content_range(self, start: int, length: int, beyond: int) -> None:
        """The last byte that is told is the last one that is sent."""
        chosen = ByteRange(start, start + length)
        size = chosen.stop + beyond
        self.assertEqual(len(chosen), length)
        self.assertEqual(chosen.content_range(size), f"bytes {start}-{start + length - 1}/{size}")


class IfRangeTests(SynchronousTestCase):
    """Going on with a download only if the file is still the same."""

    def is_resumed(self, condition: str) -> bool:
        """Whether a part is sent on this condition, and not the whole."""
        selected = select({"range": "bytes=2-", "if-range": condition}, CURRENT, 5)
        self.assertIn(selected, (None, [ByteRange(2, 5)]))
        return selected is not None

    def test_same(self) -> None:
        """The validators that the first answer had let the download go on."""
        self.assertTrue(self.is_resumed(CURRENT.etag))
        self.assertTrue(self.is_resumed(CURRENT.last_modified))
        self.assertTrue(self.is_resumed(f" {CURRENT.etag} "))

    @QUICK
    @given(TAGS)
    def test_etag(self, tag: Tag) -> None:
        """Any other tag, and each weak one, gets the whole file: nothing is spliced."""
        self.assertEqual(self.is_resumed(str(tag)), str(tag) == CURRENT.etag)

    @QUICK
    @given(st.integers(0, 4 * 10**9) | st.integers(MODIFIED - 2, MODIFIED + 2))
    def test_date(self, seconds: int) -> None:
        """Any other date does so too."""
        self.assertEqual(self.is_resumed(http_date(seconds)), seconds == MODIFIED)

    @QUICK
    @given(header_values())
    @example("")
    @example("*")
    @example('"162f-5')
    @example("162f-5")
    @example('W/"162f-5"')
    @example('"162f-5", "x"')
    def test_garbage(self, condition: str) -> None:
        """A condition that cannot be read does not hold."""
        self.assertEqual(self.is_resumed(condition), condition.strip() == CURRENT.etag)

    def test_bad_range(self) -> None:
        """When the file is another one, a range that it does not have is no error."""
        headers = {"range": "bytes=100-", "if-range": '"old"'}
        self.assertIsNone(select(headers, CURRENT, 5))
