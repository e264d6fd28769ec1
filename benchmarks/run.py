"""
Measure the Storage Proxy beside its peers: ``python benchmarks/run.py``.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import calls
import connections
import transfers
import trees
from bench import QUICK, Bench, Sizes
from report import Result, heading, tables
from scenarios import OURS, Measurement, Scenario
from servers import HERE, NotHere

SCENARIOS: list[Scenario] = [
    *transfers.SCENARIOS,
    *calls.SCENARIOS,
    *connections.SCENARIOS,
    *trees.SCENARIOS,
]

#: Seconds after which a scenario is not measured again: some disks are slower than others by far.
PATIENCE = 100.0

RESULTS = HERE / "RESULTS.md"


def say(text: str) -> None:
    """Tell somebody who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measures the Storage Proxy of this checkout beside nginx, plain Twisted, the"
        " original and the tools of the system."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and one round: shows that it works"
    )
    parser.add_argument("--only", default="", help="scenarios, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and end")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where the data goes, 10 GB of it, on the disk to measure (default: /var/tmp)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "storageproxy-benchmarks",
        help="where the original is kept when it is installed",
    )
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {RESULTS.name}")
    return parser.parse_args(arguments)


def chosen(only: str) -> list[Scenario]:
    """
    The scenarios that are wanted.

    :raises SystemExit: when one is not known.
    """
    names = [name for name in only.split(",") if name]
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise SystemExit(f"no such scenario: {', '.join(sorted(unknown))}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]


def equipped(bench: Bench, scenarios: list[Scenario]) -> list[Result]:
    """Make what scenarios need, start the servers, and make what is measured on."""
    results = [Result(scenario) for scenario in scenarios]
    for result in results:
        try:
            result.scenario.equip(bench)
        except NotHere as error:
            result.failure = str(error)
    bench.start({peer for scenario in scenarios for peer in scenario.peers})
    for result in results:
        if not result.failure:
            say(f"preparing {result.scenario.name}")
            result.scenario.prepare(bench)
    return results


def measure(bench: Bench, result: Result, number: int) -> None:
    """One round of one scenario: everyone once, another one first each time."""
    scenario = result.scenario
    began = time.monotonic()
    everyone = [OURS, *(peer for peer in scenario.peers if peer not in bench.missing)]
    first = number % len(everyone)
    found: dict[str, Measurement] = {}
    with scenario.daemon(bench) as daemon:
        for who in everyone[first:] + everyone[:first]:
            bench.settle()
            with bench.account(daemon) as costs:
                try:
                    found[who] = scenario.measure(bench, who, daemon)
                except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                    # One that fails shall not cost what was measured before.
                    found[who] = Measurement(None, [str(error) or repr(error)])
            if who == OURS:
                result.costs += costs
            for line in found[who].errors[:3]:
                say(f"  {who}: {line}")
    result.rounds.append(found)
    result.seconds += time.monotonic() - began
    values = ", ".join(f"{who} {one.value or 0:.4g}" for who, one in found.items())
    say(f"{number + 1}: {scenario.name}: {values} {scenario.unit}")


def _end(*_: object) -> None:
    # What is cleared up then is cleared up, also if somebody asks again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def measured(wanted: argparse.Namespace) -> str:
    """The options that the figures depend on; where the data lay is the reader's own affair."""
    if wanted.quick:
        return "--quick"
    only = f" --only {wanted.only}" if wanted.only else ""
    return f"--rounds {wanted.rounds}{only}"


def main(arguments: list[str]) -> int:
    """
    :return: 1 when there was an error of ours, else 0.
    """
    wanted = options(arguments)
    scenarios = chosen(wanted.only)
    if wanted.list:
        for scenario in scenarios:
            print(f"{scenario.name:16} {scenario.title}")
        return 0
    # Two thousand connections are more than most shells allow.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, _end)
    load = os.getloadavg()[0]
    rounds = 1 if wanted.quick else wanted.rounds
    wanted.directory.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="storageproxy-benchmark-", dir=wanted.directory))
    try:
        sizes = QUICK if wanted.quick else Sizes()
        with Bench(directory, sizes, wanted.cache, not wanted.quick, say) as bench:
            results = equipped(bench, scenarios)
            for number in range(rounds):
                for result in results:
                    if (
                        not result.failure
                        and number < result.scenario.rounds
                        and result.seconds < PATIENCE
                    ):
                        measure(bench, result, number)
            if wanted.quick:
                bench.note("A quick run: sizes are small, and the figures mean nothing.")
            text = heading(directory, measured(wanted), load, bench.notes, bench.missing)
            text += "\n" + tables(results, bench.missing)
        print(text, flush=True)
        if wanted.write:
            RESULTS.write_text(text)
    finally:
        say("clearing up")
        # Python takes several times as long for hundreds of thousands of files.
        subprocess.run(["rm", "-rf", str(directory)], check=False)
    return 1 if any(result.errors() for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
