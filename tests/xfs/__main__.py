"""
``python -m tests.xfs``: run each module of tests in a machine of its own, as many at once as there
are processors. ``python -m tests.xfs test_kernel`` runs one of them.
"""

from __future__ import annotations

import io
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.engines import uml


def run(module: str) -> int:
    """Run a module of tests, and show what it says when it has ended; its exit status."""
    output = io.BytesIO()
    began = time.monotonic()
    # Where no file of this machine can be in the way.
    command = [sys.executable, "-m", "twisted.trial", "--temp-directory=/run/tmp/trial"]
    status = uml.run([*command, f"tests.xfs.{module}"], output)
    took = time.monotonic() - began
    said = output.getvalue().decode(errors="replace")
    print(f"-- {module}, {took:.0f} s\n{said}", flush=True)
    return status


def main(modules: list[str]) -> int:
    """Run some modules, or all of them; 0 when all have passed."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    uml.end_on_signal()
    with ThreadPoolExecutor(os.cpu_count()) as machines:
        try:
            return int(any(list(machines.map(run, modules or found))))
        except BaseException:
            machines.shutdown(wait=False, cancel_futures=True)
            uml.switch_off()
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
