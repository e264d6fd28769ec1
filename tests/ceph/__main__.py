"""
``python -m tests.ceph``: run each module of tests in a process, with a cluster of its own, as many
at once as there are processors. ``python -m tests.ceph test_sick`` runs one of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ceph.case import DIRECTORY
from tests.engines.ceph import Cluster

#: Seconds for a module.
DEADLINE = 480.0

_running: set[subprocess.Popen[bytes]] = set()


def run(module: str) -> int:
    """Run a module of tests, and show what it says when it has ended; its exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ceph-") as directory:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "twisted.trial"),
                f"--temp-directory={directory}/trial",
                f"tests.ceph.{module}",
            ],
            env={**os.environ, DIRECTORY: f"{directory}/cluster"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        _running.add(child)
        late = False
        try:
            said, _ = child.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            said, _ = child.communicate()
        finally:
            _running.discard(child)
            # Were the module killed, mounts of it would be left, in which the directory hangs.
            Cluster(Path(directory, "cluster")).stop()
    took = time.monotonic() - began
    print(f"-- {module}, {took:.0f} s\n{said.decode(errors='replace')}", flush=True)
    if late:
        print(f"{module} was killed after {DEADLINE:g} s", flush=True)
    return child.returncode


def main(modules: list[str]) -> int:
    """Run some modules, or all of them; 0 when all have passed."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with ThreadPoolExecutor(os.cpu_count()) as processes:
        try:
            return int(any(list(processes.map(run, modules or found))))
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            for child in tuple(_running):
                child.kill()
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
