"""
The program that becomes a command in an open directory, for :func:`storageproxy.process.stream`.

The command gets a process group of its own, so that all that it starts can be ended with it, and
ends with the daemon. Where it is to be confined, the kernel refuses it every file outside of its
directory, wherever symbolic links may lead it, besides the software that it consists of
(landlock(7)). What it can still do out there is what needs no opening of files: stat(2), and of
files that it may write to, chmod(2) and the like.

It is run by its path, ``launch.py RIGHTS SOFTWARE COMMAND ARGUMENT...``, with the directory as
descriptor 3, and imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

#: What a command may do in its directory: anything; read; read and remove.
ANYTHING, READ, REMOVE = "anything", "read", "remove"

#: The descriptor of the directory.
DIRECTORY = 3

#: Exit status when the command could not be begun, as env(1) has it.
NOT_BEGUN = 125

#: Files and directories that programs look into: for libraries, the time zone, what is mounted.
SYSTEM = (
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/self",
    "/sys/devices/system/cpu",
)

#: The numbers of the calls are the same on all architectures; ``linux/prctl.h``.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
_VERSION_FLAG, _PATH_BENEATH = 1, 1

#: ``linux/landlock.h``
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (
    1 << bit for bit in range(6)
)
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE
#: How many rights there are in its versions, from the first one on.
_RIGHTS = (13, 14, 15, 15, 16)
_RULESET, _RULE = struct.Struct("=Q"), struct.Struct("=Qi")
_GRANTED = {
    READ: _READ_FILE | _READ_DIR,
    REMOVE: _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE,
}

_libc = ctypes.CDLL(None, use_errno=True)


def confinable() -> bool:
    """Whether the kernel can confine a command to a directory."""
    return _version() > 0


def _version() -> int:
    found: int = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_FLAG)
    )
    return found


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _confine(rights: str, software: list[str]) -> None:
    version = _version()
    if version < 1:
        raise OSError("the kernel cannot confine it")
    number = _RIGHTS[min(version, len(_RIGHTS)) - 1]
    attributes = _RULESET.pack((1 << number) - 1)
    rules = _checked(
        _libc.syscall(
            ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), 0
        )
    )
    _grant(rules, DIRECTORY, _GRANTED[rights])
    for path in software:
        _grant_path(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in SYSTEM:
        _grant_path(rules, path, _READ_FILE | _READ_DIR)
    _checked(_libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(rules), 0))
    os.close(rules)


def _grant_path(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # Not all systems have all of them.
        return
    if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
        rights &= _ON_FILES
    _grant(rules, descriptor, rights)
    os.close(descriptor)


def _grant(rules: int, descriptor: int, rights: int) -> None:
    rule = _RULE.pack(rights, descriptor)
    _checked(
        _libc.syscall(
            ctypes.c_long(_ADD_RULE), ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, 0
        )
    )


def main(rights: str, software: str, command: str, *arguments: str) -> None:
    """
    Become the command.

    :param rights: one of those above.
    :param software: files and directories that it may read and run, with colons between.
    :param command: its path.
    """
    os.setsid()
    _checked(_libc.prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0))
    os.fchdir(DIRECTORY)
    if rights != ANYTHING:
        _confine(rights, software.split(":"))
    os.close(DIRECTORY)
    os.execv(command, [os.path.basename(command), *arguments])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"it cannot be begun: {error}\n")
        sys.exit(NOT_BEGUN)
