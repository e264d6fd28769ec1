"""
The capabilities of a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from backends.xfs import privilege
from backends.xfs.privilege import NEEDED, Capability

CHECKOUT = Path(privilege.__file__).parents[2]

_PROGRAM = """
import subprocess
from backends.xfs import privilege
privilege.keep({wanted})
print(open("/proc/thread-self/status").read())
print(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout)
print(privilege.missing())
"""


class MissingTests(SynchronousTestCase):
    def test_missing(self) -> None:
        """What is lacking is named."""
        both = (1 << Capability.CAP_SYS_ADMIN) | (1 << Capability.CAP_FOWNER)
        for mask, expected in (
            (both, []),
            (0, ["CAP_FOWNER", "CAP_SYS_ADMIN"]),
            (both & ~(1 << Capability.CAP_FOWNER), ["CAP_FOWNER"]),
            (2**41 - 1, []),
        ):
            status = f"Name:\tpython\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask:016x}\nCapBnd:\t0\n"
            self.assertEqual(privilege.missing(status), expected)

    def test_strange(self) -> None:
        """Where nothing can be told, nothing is there."""
        self.assertEqual(privilege.missing(""), ["CAP_FOWNER", "CAP_SYS_ADMIN"])

    def test_own(self) -> None:
        """It is about this process."""
        self.assertIsInstance(privilege.missing(), list)


class KeepTests(SynchronousTestCase):
    def sets(self, wanted: str) -> list[tuple[str, int]]:
        """The sets of capabilities of a process that keeps some, and of one that it starts."""
        said = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(wanted=wanted)],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        return [
            (line.split()[0], int(line.split()[1], 16))
            for line in said.splitlines()
            if line.startswith("Cap")
        ]

    def test_needed(self) -> None:
        """All others are given up, for good, also by the commands that are run."""
        before = privilege.missing()
        allowed = sum(1 << one for one in NEEDED)
        found = self.sets("privilege.NEEDED")
        self.assertEqual(len(found), 10)
        for name, mask in found:
            if name != "CapBnd:" or not before:
                self.assertEqual(mask & ~allowed, 0, name)
            if name in ("CapEff:", "CapPrm:") and not before:
                self.assertEqual(mask, allowed, name)

    def test_nothing(self) -> None:
        """Nothing can be kept, too."""
        for name, mask in self.sets("()"):
            if name != "CapBnd:":
                self.assertEqual(mask, 0, name)
