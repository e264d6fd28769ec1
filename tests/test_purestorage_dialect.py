"""
What differs between the versions of the REST API of a FlashBlade.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from backends.purestorage.dialect import NEWEST, OLDEST, V1, V2, dialect, newest, parse


class VersionTests(SynchronousTestCase):
    def test_spoken(self) -> None:
        """Versions are spoken from 1.8 up to the last one that the vendor's clients know."""
        for version, numbers in (
            ("1.8", (1, 8)),
            ("1.8.1", (1, 8, 1)),
            ("1.12", (1, 12)),
            ("2.0", (2, 0)),
            ("2.29", (2, 29)),
        ):
            self.assertEqual(parse(version), numbers)

    def test_not_spoken(self) -> None:
        """Older and newer ones are not, nor is what is no version."""
        for version in ("1.7", "1.0", "2.30", "3.0", "2", "2.latest", "v1.8", "1.8 ", "", "1.8/.."):
            self.assertIsNone(parse(version), version)

    def test_newest(self) -> None:
        """The best version of an array is taken by its numbers, whatever else it has."""
        for offered, best in (
            (["1.0", "1.8", "1.12", "1.9"], "1.12"),
            (["1.12", "2.0", "2.9", "2.10", "2.latest"], "2.10"),
            (["2.29", "2.30", "3.0"], "2.29"),
            (["1.0", "1.7"], None),
            (["1.8", "1.8.1"], "1.8.1"),
            ([], None),
        ):
            self.assertEqual(newest(offered), best)

    @given(st.lists(st.one_of(st.text(max_size=8), st.from_regex(r"[0-9]\.[0-9]{1,2}"))))
    def test_anything(self, offered: list[str]) -> None:
        """Whatever an array offers, what is taken is one of that, and is spoken."""
        best = newest(offered)
        if best is None:
            self.assertEqual([version for version in offered if parse(version)], [])
        else:
            self.assertIn(best, offered)
            numbers = parse(best) or ()
            self.assertTrue(OLDEST <= numbers and numbers[:2] <= NEWEST)

    def test_dialect(self) -> None:
        """The generation is what a version begins with."""
        self.assertEqual([dialect(version) for version in ("1.8.1", "1.12", "2.1")], [V1, V1, V2])
