"""
``python -m tests.engines.flashblade --port 8443``: an array to point a daemon at.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tests.engines.flashblade.array import API_TOKEN, FileSystem, example
from tests.engines.flashblade.simulator import Simulator


async def serve(reactor: Any, options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    array = example(reactor.seconds)
    if options.versions:
        array.versions = options.versions
    array.idle_timeout = options.idle_timeout * 1000
    for name in options.file_system:
        array.add(FileSystem(name))
    with tempfile.TemporaryDirectory(prefix="flashblade-") as name:
        simulator = Simulator(reactor, array, Path(name))
        await simulator.start(options.port)
        print(f'purity_endpoint = "{simulator.url}"')
        print(f'purity_api_token = "{API_TOKEN}"')
        print(f"# its authority: {simulator.ca}")
        print(f"# file systems: {', '.join(array.file_systems)}", flush=True)
        await Deferred()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.engines.flashblade")
    parser.add_argument("--port", type=int, default=0, help="any when it is not given")
    parser.add_argument(
        "--file-system", action="append", default=[], metavar="NAME", help="to have besides"
    )
    parser.add_argument("--versions", nargs="+", help="of the API, the oldest first")
    parser.add_argument("--idle-timeout", type=int, default=1800, help="seconds; 0 for none")
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(serve(reactor, options)))


if __name__ == "__main__":
    main()
