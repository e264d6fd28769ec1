"""
The commands of the RapidFile Toolkit, on any directory: the command lines and outputs of the
generations 1 and 2, and every way to fail.

:func:`install` puts them into a directory that is to be on the daemon's path. They are programs of
their own, and behave as a :class:`Behaviour` says, which can be changed while they are used. It is
in their own text: commands of the daemon are given no environment, and may read nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

#: What the line begins with that says how a command is to behave, its last.
BEHAVIOUR = "# behaviour: "

COMMANDS = ("pls", "pdu", "pcp", "pcopy", "prm", "pfind")

#: The system's own, which a confined command may run: there may be others on the path.
PYTHON = "/usr/bin/python3"


@dataclass
class Behaviour:
    """
    :param generation: 1 or 2.
    :param broken: the only command that behaves badly, empty for all of them.
    :param complaint: what is said on standard error, when it has ended.
    :param status: the exit status.
    :param complete: records after which it ends; None for all.
    :param dies: the signal that it sends itself then.
    :param garbage: what is written to standard output before anything else.
    :param pause: seconds before each record.
    :param hangs: whether it does nothing more after those records, and does not want to end.
    :param child: whether it starts another process, which does not end either.
    :param synthetic: entries of a listing that are nowhere on disk, instead of those that are.
    :param octal_types: whether types of files are told as octal digits: 40000.
    :param octal_modes: whether permissions are: 644. None: as the generation does.
    :param escaped: whether JSON is ASCII, with escapes.
    :param by_path: whether the directory is looked for by its path, not taken as it is open.
    :param swapped: a name that is taken for one of a directory, whatever it is by now: its owner
        may have put a symbolic link in its place since it was looked at.
    """

    generation: int = 2
    broken: str = ""
    complaint: str = ""
    status: int = 0
    complete: int | None = None
    dies: int = 0
    garbage: str = ""
    pause: float = 0.0
    hangs: bool = False
    child: bool = False
    synthetic: int = 0
    octal_types: bool = False
    octal_modes: bool | None = None
    escaped: bool = False
    by_path: bool = False
    swapped: str = ""


def install(directory: str | Path, behaviour: Behaviour | None = None) -> None:
    """
    Put the commands into a directory.

    :param directory: an existing one.
    """
    behave(directory, behaviour or Behaviour())


def behave(directory: str | Path, behaviour: Behaviour) -> None:
    """Have the commands behave otherwise from now on."""
    source = Path(__file__).read_text(encoding="utf-8")
    program = f"#!{PYTHON} -IS\n{source}\n{BEHAVIOUR}{json.dumps(asdict(behaviour))}\n"
    for name in COMMANDS:
        if name != ("pcopy" if behaviour.generation == 1 else "pcp"):
            new = Path(directory) / f"{name}.new"
            new.write_text(program, encoding="utf-8")
            new.chmod(0o755)
            # One that is just begun is the one or the other.
            new.replace(Path(directory) / name)


def running(directory: str | Path) -> list[int]:
    """The process ids of all commands of this directory that run, and of what they have started."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                line = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(f"{Path(directory).resolve()}/") in line:
                found.append(int(entry.name))
    return found


# ---- the commands themselves, each in a process of its own


class Command:
    """One of them, as it was called."""

    def __init__(self, name: str, arguments: list[str], behaviour: Behaviour) -> None:
        self.name = name
        self.options = [one for one in arguments if one.startswith("-")]
        self.paths = [os.fsencode(one) for one in arguments if not one.startswith("-")]
        self.letters = "".join(one[1:] for one in self.options if not one.startswith("--"))
        self.behaviour = behaviour
        self.is_bad = behaviour.broken in ("", name)
        self._written = 0

    def main(self) -> None:
        """Do it."""
        behaviour = self.behaviour
        if "--version" in self.options:
            old = behaviour.generation == 1
            said = f"{self.name} (RapidFile Toolkit) 1.0.0-beta.5"
            print(said if old else f"version {self.name} (RapidFile) 2.1.1")
            return
        if self.is_bad:
            if behaviour.child and os.fork() == 0:
                time.sleep(1000)  # fault: it hangs
            sys.stdout.write(behaviour.garbage)
            sys.stdout.flush()
            self.break_off()
        if behaviour.by_path:
            try:
                self.paths = [os.path.join(os.getcwdb(), path) for path in self.paths]
            except OSError as error:
                self.fail(f"cannot access '.': {error.strerror}")
        work: Callable[[], None] = getattr(self, self.name)
        work()
        self.end()

    def emit(self, record: bytes) -> None:
        """Write one record."""
        if self.is_bad and self.behaviour.pause:
            time.sleep(self.behaviour.pause)  # fault: it is slow
        sys.stdout.buffer.write(record)
        self._written += 1
        if self.is_bad:
            self.break_off()

    def break_off(self) -> None:
        """Stop when as much is written as there is to be."""
        if self.behaviour.complete == self._written:
            sys.stdout.flush()
            if self.behaviour.hangs:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    time.sleep(1000)  # fault: it hangs
            self.end()

    def end(self) -> None:
        """End as it is to."""
        sys.stdout.flush()
        if self.is_bad:
            if self.behaviour.dies:
                os.kill(os.getpid(), self.behaviour.dies)
            sys.stderr.write(self.behaviour.complaint)
            sys.stderr.flush()
            os._exit(self.behaviour.status)
        os._exit(0)

    def fail(self, message: str) -> None:
        """Complain, as it does of itself."""
        sys.stdout.flush()
        sys.stderr.write(f"{self.name}: {message}\n")
        sys.stderr.flush()
        os._exit(1)

    # ---- pls

    def pls(self) -> None:
        """List directories, one level."""
        wanted = "--json" if self.behaviour.generation == 1 else "--jsonlines"
        if wanted not in self.options:
            self.fail(f"unrecognized options {self.options}")
        for path in self.paths:
            if self.behaviour.synthetic:
                self.synthetic(path)
                continue
            try:
                names = os.listdir(path)
            except OSError as error:
                self.fail(f"cannot access '{os.fsdecode(path)}': {error.strerror}")
            for name in names:
                inner = os.path.join(path, name)
                self.emit(self.entry(inner, os.lstat(inner)))

    def entry(self, path: bytes, status: os.stat_result) -> bytes:
        """One line of a listing."""
        behaviour = self.behaviour
        kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
        octal = behaviour.octal_modes
        if octal is None:
            octal = behaviour.generation == 1
        found = {
            "path": os.fsdecode(path),
            "filetype": int(f"{kind:o}") if behaviour.octal_types else kind,
            "mode": int(f"{mode:o}") if octal else mode,
            "nlink": status.st_nlink,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "size": status.st_size,
            "used": status.st_blocks * 512,
            "atime": status.st_atime_ns / 10**9,
            "mtime": status.st_mtime_ns / 10**9,
            "ctime": status.st_ctime_ns / 10**9,
            "fileid": status.st_ino,
        }
        text = json.dumps(found, ensure_ascii=behaviour.escaped)
        return text.encode("utf-8", "surrogateescape") + b"\n"

    def synthetic(self, path: bytes) -> None:
        """A listing of files that are not there."""
        line = self.entry(path + b"/%d", os.lstat(__file__))
        for start in range(0, self.behaviour.synthetic, 1000):
            stop = min(start + 1000, self.behaviour.synthetic)
            sys.stdout.buffer.write(b"".join(line % n for n in range(start, stop)))
            self._written += stop - start
            if self.is_bad:
                self.break_off()

    # ---- pdu

    def pdu(self) -> None:
        """Tell the sizes of files and links, and of all together."""
        new = self.behaviour.generation == 2
        if new and "a" in self.letters and "s" in self.letters:
            self.fail("cannot both summarize and show all entries")
        end = b"\0" if "0" in self.letters else b"\n"
        for path in self.paths:
            total = 0
            for inner, status in self.walk(path):
                size = status.st_size if "b" in self.letters else status.st_blocks // 2
                total += size
                if "a" in self.letters:
                    self.emit(b"%d\t%s%s" % (size, inner, end))
            self.emit(b"%d\t%s%s" % (total, path, end))

    def walk(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """All files and links in a directory, by their paths: as careless as can be."""
        for name in sorted(os.listdir(path)):
            inner = os.path.join(path, name)
            status = os.lstat(inner)
            if self.is_directory(name, status):
                try:
                    yield from self.walk(inner)
                except OSError as error:
                    self.fail(f"cannot read '{os.fsdecode(inner)}': {error.strerror}")
            else:
                yield inner, status

    def is_directory(self, name: bytes, status: os.stat_result) -> bool:
        """Whether something was a directory when it was looked at."""
        return stat.S_ISDIR(status.st_mode) or name == os.fsencode(self.behaviour.swapped)

    # ---- prm, pcp, pfind

    def prm(self) -> None:
        """Remove trees."""
        if "r" not in self.letters:
            self.fail("cannot remove: Is a directory")
        for path in self.paths:
            self.remove(path)

    def remove(self, path: bytes) -> None:
        """Remove one, by its path, and what is in it by theirs."""
        try:
            if self.is_directory(os.path.basename(path), os.lstat(path)):
                for name in os.listdir(path):
                    self.remove(os.path.join(path, name))
                    self._written += 1
                    if self.is_bad:
                        self.break_off()
                os.rmdir(path)
            else:
                os.unlink(path)
        except OSError as error:
            self.fail(f"cannot remove '{os.fsdecode(path)}': {error.strerror}")

    def pfind(self) -> None:
        """Tell all paths."""
        for path in self.paths:
            for inner, _ in self.walk(path):
                self.emit(inner + b"\n")

    def pcp(self) -> None:
        """Copy a tree into a directory, or, with -T, to be it."""
        source, target = self.paths
        if "T" not in self.letters and os.path.isdir(target):
            target = os.path.join(target, os.path.basename(source))
        try:
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            self.fail(str(error))

    pcopy = pcp


def main() -> None:
    """Be the command that this file is named after."""
    last = Path(__file__).read_text(encoding="utf-8").splitlines()[-1]
    behaviour = Behaviour(**json.loads(last.removeprefix(BEHAVIOUR)))
    name, *arguments = (os.path.basename(sys.argv[0]), *sys.argv[1:])
    Command(name, arguments, behaviour).main()


if __name__ == "__main__" and os.path.basename(__file__) in COMMANDS:
    main()
