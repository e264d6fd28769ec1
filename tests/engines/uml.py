"""
A machine with another kernel for one command: user-mode Linux, which is an ordinary process.

It takes no privilege, and the command is root in it. What Debian's ``user-mode-linux`` has is
listed in ``/usr/share/doc/user-mode-linux/config.gz``; project quotas of XFS are among it. The
command sees the files of this machine by their own names. It may change them all, as it does so in
the memory of its machine.

``python -m tests.engines.uml COMMAND ARGUMENT...`` passes on its output and its exit status.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

KERNEL = "/usr/bin/linux.uml"
CHECKOUT = Path(__file__).parents[2]
INIT = Path(__file__).with_name("uml-init")
#: Bytes; what is not used is not taken from this machine.
MEMORY = 3 << 30
#: Seconds, after which the machine is switched off.
DEADLINE = 600.0
#: Exit statuses, as timeout(1) has them: it took too long; it could not be started.
TOO_LONG, NOT_STARTED = 124, 125

#: The process groups of machines that are on.
_running: set[int] = set()


def run(command: list[str], output: BinaryIO, deadline: float = DEADLINE) -> int:
    """
    Boot a machine, run a command in the working directory, and switch the machine off.

    :param command: a program and its arguments.
    :param output: gets what the command writes on standard output and standard error, as it comes;
        and why there is no more, when the machine has failed.
    :return: the exit status of the command, or one of those above.
    """
    with tempfile.TemporaryDirectory(prefix="uml-") as name:
        directory = Path(name).resolve()
        (directory / "command").write_text(_script(command))
        console = directory / "console"
        said, say = os.pipe()
        told, tell = os.pipe()
        with console.open("wb") as log:
            machine = subprocess.Popen(
                [
                    KERNEL,
                    f"mem={MEMORY >> 20}M",
                    "root=/dev/root",
                    "rootfstype=hostfs",
                    "ro",
                    f"init={INIT}",
                    f"ENGINE={directory}",
                    f"uml_dir={directory}",
                    "con=null",
                    "con0=null,fd:1",
                    "ssl=null",
                    f"ssl0=null,fd:{say}",
                    f"ssl1=null,fd:{tell}",
                    # A machine whose kernel fails ends.
                    "panic=-1",
                    "quiet",
                ],
                env={"PATH": os.defpath, "HOME": str(directory), "TMPDIR": _memory(name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(say, tell),
                start_new_session=True,
            )
        os.close(say)
        os.close(tell)
        _running.add(machine.pid)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            os.killpg(machine.pid, signal.SIGKILL)

        alarm = threading.Timer(deadline, give_up)
        alarm.start()
        try:
            with open(said, "rb", buffering=0) as source, open(told, "rb") as result:
                while piece := source.read(1 << 16):
                    output.write(piece)
                    output.flush()
                status = result.read()
            machine.wait()
        finally:
            alarm.cancel()
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
            _running.remove(machine.pid)
        if status:
            return int(status)
        why = f"was switched off after {deadline:g} s" if late.is_set() else "has failed"
        output.write(f"\n{shlex.join(command)}: the machine {why}; its console:\n".encode())
        output.write(console.read_bytes())
        output.flush()
        return TOO_LONG if late.is_set() else NOT_STARTED


def is_inside() -> bool:
    """Whether this is such a machine."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def switch_off() -> None:
    """Switch off the machines that other threads have booted."""
    for group in tuple(_running):
        os.killpg(group, signal.SIGKILL)


def end_on_signal() -> None:
    """Have SIGTERM raise SystemExit, so that no machine is left."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _script(command: list[str]) -> str:
    """What the machine is to do, for its shell."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", str(CHECKOUT)),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/run/tmp",
    }
    here = Path.cwd()
    # Other users than root are to reach the checkout too, wherever it lies.
    above = [str(path) for place in (here, CHECKOUT) for path in (place, *place.parents)]
    return "\n".join(
        [
            f"chmod go+x {shlex.join(above)}",
            f"cd {shlex.quote(str(here))}",
            f"exec env -i {shlex.join(f'{name}={value}' for name, value in environment.items())}"
            f" {shlex.join(command)}",
        ]
    )


def _memory(otherwise: str) -> str:
    """A directory that can hold the memory of a machine: a file, some of which is executed."""
    shared = "/dev/shm"
    try:
        status = os.statvfs(shared)
    except FileNotFoundError:
        return otherwise
    if status.f_flag & os.ST_NOEXEC or status.f_bavail * status.f_frsize < 2 * MEMORY:
        return otherwise
    return shared


if __name__ == "__main__":
    end_on_signal()
    sys.exit(run(sys.argv[1:], sys.stdout.buffer))
