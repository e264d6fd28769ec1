"""
What a server costs: CPU seconds, memory, and how long its reactors were blocked. Read from /proc.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen
from heartbeat import Lateness, Record

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all that have come of it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the third on, behind the name (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pids: list[int]) -> float:
    """Of all together, in user mode and in the kernel."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def peak_memory(pids: list[int]) -> int:
    """Bytes that the largest one had at most (VmHWM)."""
    peak = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
    return peak


def reset_peak(pids: list[int]) -> None:
    """Let the peaks be what is used now (proc(5), clear_refs)."""
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


@frozen
class Cost:
    """
    Of one measurement.

    :param cpu: seconds, of all processes.
    :param memory: bytes, of the largest process.
    :param lateness: of the worst reactor.
    :param bare: of a process that only slept meanwhile.
    :param hearts: reactors that were listened to.
    """

    cpu: float
    memory: int
    lateness: Lateness
    bare: Lateness
    hearts: int


@frozen
class Account:
    """
    What a server costs from now on.

    :param pid: its first process.
    :param hearts: the directory of the heartbeats' files.
    :param bare: the record of the process that only sleeps.
    """

    pid: int
    hearts: Path
    bare: Record
    _cpu: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        pids = tree(self.pid)
        reset_peak(pids)
        for record in self._records(pids):
            record.reset()
        self.bare.reset()
        object.__setattr__(self, "_cpu", cpu_seconds(pids))

    def _records(self, pids: list[int]) -> list[Record]:
        paths = [self.hearts / str(pid) for pid in pids]
        return [Record(path) for path in paths if path.exists()]

    def close(self) -> Cost:
        """What it has been."""
        pids = tree(self.pid)
        lateness = Lateness()
        records = self._records(pids)
        for record in records:
            lateness = lateness.worse(record.read())
        return Cost(
            cpu_seconds(pids) - self._cpu,
            peak_memory(pids),
            lateness,
            self.bare.read(),
            len(records),
        )
