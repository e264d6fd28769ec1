"""
The tables: what was measured, what it cost, and whether it is what it has to be.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from accounting import Cost
from attrs import define, field
from heartbeat import Lateness
from scenarios import OURS, Measurement, Scenario, Target
from servers import CHECKOUT, ORIGINAL

#: The limits of every scenario.
MEMORY = 150e6
BLOCKED = 0.050

_PEERS = ("nginx", "twisted", "original", "tool")
_SPEEDS = ("scenario", "", "ours", "nginx", "plain Twisted", "original", "tool", "target", "met")
_COSTS = tuple(
    "scenario,rounds,CPU s,MB,errors,blocked ms,late ms,no CPU ms,sleeper late ms,met".split(",")
)


@define
class Result:
    """
    All rounds of a scenario.

    :param rounds: what each server reached, for each round.
    :param costs: of the daemon, for each round.
    :param failure: why there is nothing.
    :param seconds: that all of it took.
    """

    scenario: Scenario
    rounds: list[dict[str, Measurement]] = field(factory=list)
    costs: list[Cost] = field(factory=list)
    failure: str = ""
    seconds: float = 0.0

    def value(self, who: str) -> float | None:
        """The median of somebody's rounds."""
        values = [value for one in self.rounds if (value := _value(one, who)) is not None]
        return median(values) if values else None

    def ratio(self, peer: str) -> float | None:
        """The median of the ratios to a peer, each within a round."""
        ratios = [
            ours / theirs
            for one in self.rounds
            if (ours := _value(one, OURS)) is not None and (theirs := _value(one, peer))
        ]
        return median(ratios) if ratios else None

    def errors(self, who: str = OURS) -> list[str]:
        """What went wrong with somebody."""
        return [error for one in self.rounds if who in one for error in one[who].errors]

    @property
    def lateness(self) -> Lateness:
        """The worst of all rounds."""
        worst = Lateness()
        for cost in self.costs:
            worst = worst.worse(cost.lateness)
        return worst

    @property
    def bare(self) -> Lateness:
        """The worst of the process that only slept."""
        worst = Lateness()
        for cost in self.costs:
            worst = worst.worse(cost.bare)
        return worst

    def meets(self, target: Target) -> bool | None:
        """Whether a target is met; None when that is not known."""
        ratio = self.ratio(target.peer)
        if ratio is None:
            return None
        if self.scenario.smaller_is_better:
            return ratio <= target.factor
        return ratio >= target.factor


def _value(measurements: dict[str, Measurement], who: str) -> float | None:
    return measurements[who].value if who in measurements else None


def figure(value: float) -> str:
    """A number with three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else "0"


def _cell(result: Result, peer: str, missing: dict[str, str]) -> str:
    if peer not in result.scenario.peers:
        return ""
    value, ratio = result.value(peer), result.ratio(peer)
    if value is None:
        return "not here" if peer in missing else "failed"
    errors = len(result.errors(peer))
    name = f"{result.scenario.tool}: " if peer == "tool" else ""
    text = f"{name}{figure(value)}"
    if ratio is not None:
        text += f" (**{figure(ratio)} ×**)"
    return text + (f", {errors} errors" if errors else "")


def _target(result: Result, target: Target) -> str:
    word = "at most " if result.scenario.smaller_is_better else ""
    peer = result.scenario.tool if target.peer == "tool" else target.peer
    aim = f" (aim {target.aim:g})" if target.aim else ""
    return f"{word}{target.factor:g} × {peer}{aim}"


def _met(result: Result) -> str:
    if not result.scenario.targets:
        return ""
    said = {True: "yes", False: "**no**", None: "not known"}
    return "; ".join(said[result.meets(target)] for target in result.scenario.targets)


def _table(head: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _speeds(result: Result, missing: dict[str, str]) -> list[str]:
    scenario = result.scenario
    ours = result.value(OURS)
    if ours is None:
        reason = f"not measured: {result.failure or ' '.join(result.errors()[:1])}"
        return [scenario.name, scenario.title, reason] + [""] * (len(_PEERS) + 2)
    return [
        scenario.name,
        scenario.title,
        f"{figure(ours)} {scenario.unit}",
        *(_cell(result, peer, missing) for peer in _PEERS),
        "; ".join(_target(result, target) for target in scenario.targets),
        _met(result),
    ]


def _costs(result: Result) -> list[str]:
    memory = max(cost.memory for cost in result.costs)
    late, bare = result.lateness, result.bare
    errors = len(result.errors())
    good = memory < MEMORY and late.blocked <= BLOCKED and not errors
    heard = all(cost.hearts for cost in result.costs)
    return [
        result.scenario.name,
        str(len(result.rounds)),
        f"{median(cost.cpu for cost in result.costs):.2f}",
        f"{memory / 1e6:.0f}",
        str(errors),
        f"{late.blocked * 1000:.0f}" if heard else "not known",
        f"{late.late * 1000:.0f}",
        f"{late.starved * 1000:.0f}",
        f"{bare.late * 1000:.0f}",
        "yes" if good and heard else "**no**",
    ]


def tables(results: list[Result], missing: dict[str, str]) -> str:
    """
    The report in Markdown.

    :param missing: peers that were not here, and why.
    """
    return f"""\
## Rates and times

Medians over the rounds; in parentheses the median of the ratios ours / peer, each within one round.
Rates (MB/s of 10⁶ bytes, /s) are better when greater, times (s, ms) when smaller.

{_table(_SPEEDS, (_speeds(result, missing) for result in results))}

## What it costs the daemon

CPU seconds of all its processes (median), peak memory of the largest one (VmHWM), errors (an
unexpected status, a short body) in all rounds, and the longest time that its reactor was blocked:
how late a call every 5 ms was, without the time that the reactor's thread was runnable and had no
CPU. Beside it the greatest lateness as such, the longest wait for a CPU, and the greatest lateness
of a process that only slept: where that is great too, the machine itself stood still. Met is:
below {MEMORY / 1e6:.0f} MB, no error, at most {BLOCKED * 1000:.0f} ms.

{_table(_COSTS, (_costs(result) for result in results if result.costs))}
"""


def heading(
    directory: Path, options: str, load: float, notes: list[str], missing: dict[str, str]
) -> str:
    """
    Where, when and with what it was measured.

    :param directory: of the data.
    :param options: of the command line.
    :param load: average, of what else the machine had to do.
    """
    lines = [
        "# Results of the benchmark",
        "",
        f"- {time.strftime('%Y-%m-%d')}, `python benchmarks/run.py {options}`, commit"
        f" {_said('git', '-C', str(CHECKOUT), 'describe', '--always', '--dirty')}",
        f"- {os.cpu_count()} × {_cpu()}, {_memory():.0f} GiB, Linux {platform.release()},"
        f" {_said('findmnt', '-n', '-o', 'FSTYPE', '-T', str(directory))};"
        f" load average at the start {load:.1f}",
        f"- Python {platform.python_version()}, Twisted {_version('twisted')},"
        f" Klein {_version('klein')}; {_nginx()}; {ORIGINAL}",
        *(f"- {note}" for note in notes),
        *(f"- {name} is not here: {' '.join(why.split())}" for name, why in missing.items()),
        "",
    ]
    return "\n".join(lines)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return (done.stdout + done.stderr).strip().splitlines()[0] if not done.returncode else "unknown"


def _nginx() -> str:
    path = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return _said(path, "-v").removeprefix("nginx version: ") if path else "no nginx"


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
