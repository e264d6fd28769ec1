"""
What goes into an archive, for tests that have no files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from storageproxy.transfer.ziprecords import Member, Members


def columns(contents: Iterable[Member]) -> Members:
    """The same as it is found in a directory; names are those of the paths."""
    made = Members()
    for member in contents:
        if member.is_directory:
            made.add_directory(member.path, _state(member))
        else:
            made.add_files([member.path], [_state(member)])
    return made


def _state(member: Member) -> os.stat_result:
    # The times are there twice: in whole seconds, and behind those with their fractions.
    whole = (member.mode, 0, 0, 1, 0, 0, member.size, 0, 0, 0)
    return os.stat_result((*whole, 0.0, float(member.mtime), 0.0))
