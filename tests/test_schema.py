# -*- test-case-name: tests.test_schema -*-
"""
From untrusted tables to attrs classes.
"""

from __future__ import annotations

import math
from decimal import Decimal
from enum import Enum
from typing import Any

import attrs
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy import schema
from storageproxy.api import parameters
from storageproxy.schema import (
    ByteSize,
    Complaint,
    Duration,
    FileName,
    Flag,
    RelativePath,
    RelativePaths,
    Text,
    byte_size,
    converter,
    duration,
    flag,
    number,
    solid_text,
    structure,
    whole_number,
)
from storageproxy.vfolder import QuotaScopeID, VFolderID
from tests.strategies import QUICK, json_values, relative_paths, tables

#: What the routes of the manager API take.
PARAMETERS = [
    value
    for value in vars(parameters).values()
    if isinstance(value, type) and attrs.has(value) and value.__module__ == parameters.__name__
]
FOLDER = "0123456789abcdef0123456789abcdef"
PLAUSIBLE = st.sampled_from(
    ["local", FOLDER, f"user:{FOLDER}/{FOLDER}", "a/b", ["a", "b"], 5, "1g", True, {"quota": "1g"}]
)


@attrs.frozen
class Inner:
    """A table in a table."""

    size: ByteSize
    words: list[Text] = attrs.field(factory=list)


@attrs.frozen
class Outer:
    """A table with a field of each kind."""

    name: Text
    inner: Inner
    on: Flag = Flag(False)
    path: RelativePath = RelativePath(".")
    paths: RelativePaths = attrs.field(factory=lambda: RelativePaths([]))
    file: FileName = FileName("x")
    wait: Duration = Duration(1.0)
    count: int = 0
    ratio: float = 0.0
    scope: QuotaScopeID | None = None


class FlagTests(SynchronousTestCase):
    """Flags, as the original takes them."""

    def test_true(self) -> None:
        """What means yes."""
        for value in (True, 1, 1.0, "t", "true", "y", "yes", "on", "1", "1.0", " YES ", "True"):
            self.assertIs(flag(value), True, value)

    def test_false(self) -> None:
        """What means no; null does too."""
        for value in (False, 0, 0.0, None, "false", "n", "no", "off", "0", "none", "0.0", " OFF "):
            self.assertIs(flag(value), False, value)

    @QUICK
    @given(json_values())
    @example("f")
    @example("")
    @example(2)
    @example([])
    @example({})
    def test_others(self, value: Any) -> None:
        """All else is refused, f among them."""
        words = "t true y yes on 1 1.0 false n no off 0 none 0.0".split()
        try:
            flag(value)
        except ValueError:
            # The very large numbers of JSON cannot even be written.
            if not isinstance(value, int) or abs(value) < 10**300:
                self.assertNotIn(str(value).strip().lower(), words)
        else:
            self.assertIn(str(value).strip().lower(), words)


class ByteSizeTests(SynchronousTestCase):
    """Sizes, as the original takes them."""

    def test_spellings(self) -> None:
        """A size can be a number, or text with a unit in any letter case (powers of 1024)."""
        for value, expected in {
            0: 0,
            1073741824: 2**30,
            "0": 0,
            "1024": 1024,
            " 1024 ": 1024,
            "1_000": 1000,
            "100g": 100 * 2**30,
            "1G": 2**30,
            "1gb": 2**30,
            "1GiB": 2**30,
            "1 GiB": 2**30,
            "1gbytes": 2**30,
            "1.5g": 3 * 2**29,
            "0.5k": 512,
            "1k": 2**10,
            "1m": 2**20,
            "1t": 2**40,
            "1p": 2**50,
            "1e": 2**60,
            "10 bytes": 10,
        }.items():
            self.assertEqual(byte_size(value), expected, value)

    def test_byte(self) -> None:
        """The singular is understood too, as in the original: it writes sizes so itself."""
        for value, expected in {"1 byte": 1, "1kbyte": 1024, "1kibyte": 1024}.items():
            self.assertEqual(byte_size(value), expected, value)

    def test_endless(self) -> None:
        """No limit is more than any file has."""
        for value in ("inf", "infinite", "infinity", "INF"):
            self.assertGreaterEqual(byte_size(value), 2**63 - 1)

    @QUICK
    @given(st.integers(0, 2**63 - 1))
    @example(2**53 + 1)
    @example(2**63 - 1)
    def test_whole(self, size: int) -> None:
        """A whole number means itself to the last byte, as a number and as text."""
        self.assertEqual(byte_size(size), size)
        self.assertEqual(byte_size(str(size)), size)

    @QUICK
    @given(
        st.decimals(0, 10**6, places=3),
        st.sampled_from("kmgtpeKMGTPE"),
        st.sampled_from(["", "b", "ib", "bytes", "ibytes"]),
        st.sampled_from(["", " "]),
    )
    def test_scaled(self, value: Decimal, unit: str, ending: str, space: str) -> None:
        """A number with a unit means that many units, less than a byte cut off."""
        exact = int(value * 1024 ** ("kmgtpe".index(unit.lower()) + 1))
        got = byte_size(f"{value}{space}{unit}{ending}")
        self.assertIsInstance(got, int)
        self.assertLessEqual(abs(got - exact), max(1, exact // 2**50))

    def test_refused(self) -> None:
        """What is no size is refused, and so is a fraction of a byte and less than nothing."""
        wrong: list[Any] = [
            -1,
            "-1",
            "-1g",
            True,
            False,
            None,
            "",
            " ",
            "g",
            "1x",
            "1ki",
            "x1g",
            "1g1",
            "nan",
            "1e3",
            "0x10",
            1.5,
            [],
            {},
            "1.5",
            "1 000",
        ]
        for value in wrong:
            self.assertRaises(ValueError, byte_size, value)

    @QUICK
    @given(json_values() | st.from_regex(r"\A[0-9]{1,500}(\.[0-9]+)?[kmgtpe]?\Z"))
    @example("9" * 400)
    @example("9" * 5000)
    @example("1." + "0" * 400 + "g")
    def test_garbage(self, value: Any) -> None:
        """Whatever it is, it is a size or a ValueError."""
        try:
            self.assertGreaterEqual(byte_size(value), 0)
        except ValueError:
            pass


class DurationTests(SynchronousTestCase):
    """Times, as the original takes them."""

    def test_spellings(self) -> None:
        """A time can be a number of seconds, or text with a unit."""
        for value, expected in {
            0: 0,
            90: 90,
            1.5: 1.5,
            "90": 90,
            "1.5": 1.5,
            "90m": 5400,
            "1.5h": 5400,
            "1d": 86400,
            "2w": 1209600,
            "1 h": 3600,
        }.items():
            self.assertEqual(duration(value), expected, value)

    def test_calendar(self) -> None:
        """Months and years are about as long as they are."""
        self.assertTrue(28 * 86400 <= duration("1mo") <= 31 * 86400)
        self.assertEqual(duration("3mo"), 3 * duration("1mo"))
        self.assertTrue(365 * 86400 <= duration("1yr") <= 366 * 86400)

    def test_refused(self) -> None:
        """What is no time is refused; there is no unit for seconds, as in the original."""
        wrong: list[Any] = [
            "1s",
            "90s",
            "",
            " ",
            "h",
            "1x",
            "h1",
            "-1h",
            -1,
            -0.5,
            "inf",
            "nan",
            math.inf,
            math.nan,
            -math.inf,
            None,
            True,
            False,
            [],
            {},
            "1h30m",
            "1min",
        ]
        for value in wrong:
            self.assertRaises(ValueError, duration, value)

    @QUICK
    @given(json_values() | st.from_regex(r"\A[0-9]{1,500}(\.[0-9]+)?([wdhm]|mo|yr)?\Z"))
    @example("9" * 400)
    @example(10**400)
    def test_garbage(self, value: Any) -> None:
        """Whatever it is, it is a finite time or a ValueError."""
        try:
            self.assertTrue(0 <= duration(value) < math.inf)
        except ValueError:
            pass


class ScalarTests(SynchronousTestCase):
    """Numbers and texts."""

    def test_whole_numbers(self) -> None:
        """Whole numbers come as such or as text; flags and fractions are none."""
        for value, expected in {5: 5, "5": 5, " -5 ": -5, "+5": 5, 0: 0}.items():
            self.assertEqual(whole_number(value), expected)
        wrong: list[Any] = [
            True,
            False,
            None,
            5.0,
            1.5,
            "5.0",
            "",
            "x",
            "1_0",
            "0x5",
            "\u00b2",
            [],
            {},
        ]
        for value in wrong:
            self.assertRaises(ValueError, whole_number, value)

    @QUICK
    @given(json_values())
    @example(10**400)
    def test_number(self, value: Any) -> None:
        """A number is finite, and nothing but a ValueError comes of all else."""
        try:
            self.assertTrue(math.isfinite(number(value)))
        except ValueError:
            pass

    def test_not_numbers(self) -> None:
        """Text, flags, and what is not finite are no numbers."""
        wrong: list[Any] = ["1", True, None, math.nan, math.inf, [], {}]
        for value in wrong:
            self.assertRaises(ValueError, number, value)
        self.assertEqual(number(5), 5.0)

    def test_text(self) -> None:
        """A text is taken as it is, if there is something in it."""
        self.assertEqual(solid_text(" x "), " x ")
        wrong: list[Any] = ["", "  ", "\n", None, 5, [], {}]
        for value in wrong:
            self.assertRaises(ValueError, solid_text, value)


class Color(Enum):
    """Something to choose from."""

    RED = "red"
    GREEN = "green"


class ChoiceTests(SynchronousTestCase):
    """One of several words."""

    def test_word(self) -> None:
        """A word is taken as it is written."""
        self.assertIs(converter.structure("green", Color), Color.GREEN)

    def test_refused(self) -> None:
        """Whatever else it is, the complaint says what could be chosen."""
        for value in ("Green", "GREEN", "", "blue", None, 1, [], {}, ["red"]):
            error = self.assertRaises(ValueError, converter.structure, value, Color)
            self.assertEqual(str(error), "one of red, green")


class ComplaintTests(SynchronousTestCase):
    """What is told of tables that are wrong."""

    def complaints(self, table: Any, cls: type[Any] = Outer) -> dict[str, str]:
        """The fields that are complained about."""
        error = self.assertRaises(Complaint, structure, table, cls)
        self.assertNotIn("", error.fields if isinstance(table, dict) else {})
        return dict(error.fields)

    def test_right(self) -> None:
        """A right table has all its values, and keys that nobody knows are ignored."""
        self.assertEqual(
            structure(
                {
                    "name": "n",
                    "inner": {"size": "1k", "words": ["a"], "x": 1},
                    "on": "yes",
                    "path": "./a/",
                    "paths": "b/",
                    "wait": "1m",
                    "count": "7",
                    "ratio": 1,
                    "scope": f"user:{FOLDER}",
                    "unknown": {},
                },
                Outer,
            ),
            Outer(
                name=Text("n"),
                inner=Inner(ByteSize(1024), [Text("a")]),
                on=Flag(True),
                path=RelativePath("a"),
                paths=RelativePaths(["b"]),
                wait=Duration(60.0),
                count=7,
                ratio=1.0,
                scope=QuotaScopeID.parse(f"user:{FOLDER}"),
            ),
        )

    def test_missing(self) -> None:
        """What is missing is said to be required, in inner tables also."""
        self.assertEqual(
            self.complaints({"inner": {}}),
            {"name": "is required", "inner.size": "is required"},
        )

    def test_each_field(self) -> None:
        """Each wrong field is named, by its way through the tables, and all at once."""
        found = self.complaints(
            {
                "name": " ",
                "inner": {"size": "x", "words": ["a", 5, "b", ""]},
                "on": "perhaps",
                "path": "/a",
                "paths": ["a", "/b"],
                "file": "a/b",
                "wait": "1s",
                "count": 1.5,
                "ratio": "1",
                "scope": "x",
            }
        )
        self.assertEqual(
            set(found),
            {
                "name",
                "inner.size",
                "inner.words.1",
                "on",
                "path",
                "paths.1",
                "file",
                "wait",
                "count",
                "ratio",
                "scope",
            },
        )
        self.assertTrue(all(found.values()))

    def test_nested(self) -> None:
        """A client is told in tables in tables, as by the original."""
        error = self.assertRaises(Complaint, structure, {"name": "n", "inner": {}}, Outer)
        self.assertEqual(error.nested(), {"inner": {"size": "is required"}})
        self.assertIn("inner.size: is required", str(error))

    def test_wrong_kind(self) -> None:
        """What is no table or list at all is said to be none, in words for people."""
        for table in (None, 5, "x", [], [{"name": "n"}], True):
            self.assertIn("table", " ".join(self.complaints(table).values()))
        self.assertIn("table", self.complaints({"name": "n", "inner": "size"})["inner"])
        wrong: list[Any] = ["abc", {"a": "b"}, 5]
        for words in wrong:
            found = self.complaints({"name": "n", "inner": {"size": 1, "words": words}})
            self.assertIn("list", found["inner.words"])

    def test_null(self) -> None:
        """Null is no value but where it is one."""
        self.assertEqual(
            set(self.complaints({"name": None, "inner": None, "count": None})),
            {"name", "inner", "count"},
        )
        self.assertIsNone(
            structure({"name": "n", "inner": {"size": 1}, "scope": None}, Outer).scope
        )

    @QUICK
    @given(
        json_values()
        | tables([field.name for field in attrs.fields(Outer)], PLAUSIBLE)
        | st.fixed_dictionaries(
            {"name": st.just("n"), "inner": tables(["size", "words"], PLAUSIBLE)}
        )
    )
    def test_garbage(self, table: Any) -> None:
        """Whatever comes, it is understood or complained about, and nothing else happens."""
        try:
            structure(table, Outer)
        except Complaint as error:
            self.assertTrue(error.fields)
            self.assertTrue(str(error))
            error.nested()


class ParameterTests(SynchronousTestCase):
    """The parameters of the manager API."""

    def test_found(self) -> None:
        """The classes that this is about exist."""
        self.assertLessEqual(
            {parameters.Create, parameters.Upload, parameters.Delete, parameters.NewQuota},
            set(PARAMETERS),
        )

    @QUICK
    @given(st.sampled_from(PARAMETERS), json_values())
    def test_arbitrary(self, cls: type[Any], table: Any) -> None:
        """Any JSON at all is parameters, or the caller's mistake."""
        try:
            structure(table, cls)
        except Complaint as error:
            error.nested()

    @QUICK
    @given(st.data())
    def test_arbitrary_fields(self, data: st.DataObject) -> None:
        """So is any JSON in the fields that a route knows."""
        cls = data.draw(st.sampled_from(PARAMETERS))
        names = [field.name for field in attrs.fields(cls)]
        table = data.draw(tables(names, PLAUSIBLE)) if names else {}
        try:
            structure(table, cls)
        except Complaint as error:
            self.assertLessEqual({name.partition(".")[0] for name in error.fields}, set(names))
            error.nested()

    @QUICK
    @given(relative_paths(), st.sampled_from(["", "user:" + FOLDER + "/"]))
    def test_paths(self, path: str, scope: str) -> None:
        """A path and an id in either dialect arrive as they are."""
        params = structure(
            {"volume": "v", "vfid": scope + FOLDER, "relpath": path, "new": 1}, parameters.OnPath
        )
        self.assertEqual(params.relpath, path)
        self.assertEqual(params.vfid, VFolderID.parse(scope + FOLDER))

    def test_defaults(self) -> None:
        """What a manager need not send is as in the original."""
        folder = {"volume": "v", "vfid": FOLDER}
        made = structure({**folder, "relpath": "a"}, parameters.MakeDirectories)
        self.assertEqual((made.relpath, made.parents, made.exist_ok), (["a"], True, False))
        deleted = structure({**folder, "relpaths": []}, parameters.Delete)
        self.assertEqual((deleted.relpaths, deleted.recursive), ([], False))
        self.assertEqual(structure(folder, parameters.Mount).subpath, ".")
        self.assertIsNone(structure(folder, parameters.Create).options)
        self.assertIsNone(structure({**folder, "options": None}, parameters.Create).options)
        self.assertIsNone(structure({"volume": "v"}, parameters.Quota).vfid)
        clone = {"src_volume": "v", "src_vfid": FOLDER, "dst_vfid": FOLDER}
        self.assertIsNone(structure(clone, parameters.Clone).dst_volume)
        self.assertEqual(
            structure({**folder, "relpath": "a", "size": "17"}, parameters.Upload).size, 17
        )

    def test_rename(self) -> None:
        """is_dir, which some eras send and others do not, may be there or not."""
        table = {"volume": "v", "vfid": FOLDER, "relpath": "a", "new_name": "b"}
        for extra in ({}, {"is_dir": True}, {"is_dir": None}):
            self.assertEqual(structure({**table, **extra}, parameters.Rename).new_name, "b")
        for wrong in ("", ".", "..", "a/b", "/a", 5, None):
            error = self.assertRaises(
                Complaint, structure, {**table, "new_name": wrong}, parameters.Rename
            )
            self.assertEqual(list(error.fields), ["new_name"])

    def test_own_types(self) -> None:
        """Types that are said by their names are what the module registers."""
        self.assertEqual(schema.converter.structure("on", Flag), True)
        self.assertEqual(schema.converter.structure("1k", ByteSize), 1024)
