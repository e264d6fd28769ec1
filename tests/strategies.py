"""
What Hypothesis draws from in more than one module of tests.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from storageproxy.vfolder import QuotaScopeID, VFolderID

#: For properties that are quick to check. Slow machines have slow examples, so nothing is timed.
QUICK = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
#: For properties that take some milliseconds for each example.
SLOW = settings(QUICK, max_examples=40)


def json_values() -> st.SearchStrategy[Any]:
    """Anything that a JSON (or TOML) document can hold, the numbers that JSON has not included."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(min_value=10**18, max_value=10**400)
        | st.floats()
        | st.text(max_size=20)
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
        ),
        max_leaves=8,
    )


def tables(names: list[str], plausible: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """
    Tables that have some of the names that a class knows, so that its fields are reached.

    :param plausible: values that are right for some of the fields.
    """
    return st.dictionaries(st.sampled_from(names), plausible | json_values(), max_size=len(names))


def uuids() -> st.SearchStrategy[UUID]:
    """Any UUID."""
    return st.uuids(version=None)


@st.composite
def spelled_uuids(draw: st.DrawFn) -> tuple[UUID, str]:
    """A UUID, and one of the ways to write it that Python's own class takes."""
    drawn = draw(uuids())
    spelling = draw(
        st.sampled_from(
            [str(drawn), drawn.hex, f"{{{drawn}}}", f"{{{drawn.hex}}}", drawn.urn, f"urn:{drawn}"]
        )
    )
    # The prefix of an URN is told by its lower case.
    return drawn, spelling if "urn" in spelling else draw(
        st.sampled_from([spelling, spelling.upper()])
    )


def quota_scopes() -> st.SearchStrategy[QuotaScopeID]:
    """Any owner of vfolders."""
    return st.builds(QuotaScopeID, st.sampled_from(["user", "project"]), uuids())


def vfolder_ids() -> st.SearchStrategy[VFolderID]:
    """Any vfolder, in both dialects."""
    return st.builds(VFolderID, st.none() | quota_scopes(), uuids())


def names() -> st.SearchStrategy[str]:
    """Names that a file can have."""
    return st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
    ).filter(lambda name: name not in (".", ".."))


def relative_paths() -> st.SearchStrategy[str]:
    """Paths inside a vfolder, in their shortest form."""
    return st.lists(names(), min_size=1, max_size=4).map("/".join)


def header_values() -> st.SearchStrategy[str]:
    """What the value of a header can be, once it is decoded as Latin-1."""
    return st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]),
        max_size=40,
    )
