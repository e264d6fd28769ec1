"""
What a manager does to the files of a vfolder, beneath its open directory.

Paths come from :func:`storageproxy.vfolder.relative_path`. Names are taken as they are: a symbolic
link is renamed, moved and deleted itself, not what it points to. All of it blocks, and belongs into
a volume's threads.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Protocol
from uuid import uuid4

from storageproxy.beneath import Directory
from storageproxy.errors import (
    InvalidSubpath,
    RequestTooLarge,
    StorageProxyError,
    TargetConflict,
    from_os_error,
)
from storageproxy.removal import remove
from storageproxy.trees import Step, unwatched

METADATA = "metadata.json"
_YEAR_1 = int(datetime.min.replace(tzinfo=UTC).timestamp())
_YEAR_9999 = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
MAX_METADATA = 10 * 1024 * 1024

#: Entries in one piece of a listing, of some 200 bytes each: a little more than ``scandir-limit``.
PIECE = 1024

_quote = json.JSONEncoder().encode
_NOTHING = _quote("")


class Status(Protocol):
    """What a listing tells of an entry: what lstat(2) says of it, as :class:`os.stat_result`."""

    @property
    def st_mode(self) -> int:
        """Its type and permissions."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """When its content has changed, in nanoseconds since the epoch."""

    @property
    def st_ctime_ns(self) -> int:
        """When anything of it has changed."""


#: Yields the entries of a directory: their names, and what they are.
Scan = Generator[tuple[str, Status], None, None]


def scan(directory: Directory, limit: int = 0) -> Scan:
    """
    The entries of a directory, by the calls of the kernel: see
    :meth:`storageproxy.interfaces.IVolume.scan`.
    """
    with os.scandir(directory.descriptor) as found:
        for entry in found:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                # It went away since its name was read.
                continue
            yield entry.name, status


def listing(
    open_folder: Callable[[], Directory],
    scan: Callable[[Directory, int], Scan],
    host_path: str,
    path: str,
    limit: int,
) -> Generator[bytes, None, None]:
    """
    One level of a directory as JSON, as ``/folder/file/list`` answers it, in pieces: there may be a
    million entries. As many as ``scandir-limit`` allows by default make one piece.

    :param open_folder: opens the vfolder.
    :param scan: yields the entries of a directory, as :func:`scan` does.
    :param host_path: where the vfolder lies on this host, to recognise links into it.
    :param limit: entries at most, 0 for all.
    """
    with open_folder() as folder:
        directory = folder.descend(path)
    with directory, closing(scan(directory, limit)) as found:
        texts = _texts(found, directory, host_path, path, limit)
        while batch := list(islice(texts, PIECE)):
            yield "".join(batch).encode("ascii")


def _texts(
    found: Iterable[tuple[str, Status]],
    directory: Directory,
    host_path: str,
    path: str,
    limit: int,
) -> Iterator[str]:
    # Put together by hand: tables of tables take their encoder longer than the disk takes.
    yield '{"items": ['
    separator = ""
    count = 0
    for name, status in found:
        if limit and count == limit:
            break
        mode = status.st_mode
        target = ""
        if stat.S_ISLNK(mode):
            try:
                link = os.readlink(name, dir_fd=directory.descriptor)
            except OSError:
                # It went away, or became something else, since its name was read.
                continue
            target = _inside(link, host_path, path)
        created = _time(status.st_ctime_ns)
        modified = _time(status.st_mtime_ns)
        yield (
            f'{separator}{{"name": {_quote(name)}, "type": "{_kind(mode)}",'
            f' "stat": {{"mode": {mode}, "size": {status.st_size}, "created": "{created}",'
            f' "modified": "{modified}"}},'
            f' "symlink_target": {_quote(target) if target else _NOTHING}}}'
        )
        separator = ", "
        count += 1
    yield "]}"


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "FILE"
    if stat.S_ISDIR(mode):
        return "DIRECTORY"
    return "SYMLINK" if stat.S_ISLNK(mode) else "FILE"


def _time(nanoseconds: int) -> str:
    second, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest // 1000:06}" if rest >= 1000 else ""
    return f"{_second(second)}{fraction}+00:00"


@lru_cache(1024)
def _second(second: int) -> str:
    """A whole second as text; what lies in one directory was often made within a few of them."""
    # People can give a file any time; managers read four digits of a year.
    moment = datetime.fromtimestamp(min(max(second, _YEAR_1), _YEAR_9999), UTC)
    return moment.replace(tzinfo=None).isoformat()


def _inside(target: str, host_path: str, path: str) -> str:
    """The target of a link, relative to the listed directory; nothing when it leads out."""
    here = posixpath.normpath(posixpath.join(host_path, path))
    there = posixpath.normpath(posixpath.join(here, target))
    if there != host_path and not there.startswith(host_path + "/"):
        return ""
    return posixpath.relpath(there, here)


def make_directory(folder: Directory, path: str, parents: bool, exist_ok: bool) -> None:
    """
    :param parents: whether directories above it that are missing are made too.
    :param exist_ok: whether the directory may exist already.
    :raises FileExistsError: when it does, or a file is in its place.
    """
    if path == ".":
        if exist_ok:
            return
        raise FileExistsError(17, os.strerror(17), path)
    above = path.rpartition("/")[0]
    if parents and above:
        folder.make_directories(above)
    parent, name = folder.parent(path)
    with parent:
        try:
            os.mkdir(name, 0o755, dir_fd=parent.descriptor)
        except FileExistsError:
            if not exist_ok or not stat.S_ISDIR(folder.status(path, follow=True).st_mode):
                raise


def rename(folder: Directory, source: str, target: str) -> None:
    """
    Move a file or directory to another path of the vfolder, in one step. A file there is replaced.

    :raises TargetConflict: when the target is a directory.
    """
    from_directory, from_name = folder.parent(source)
    with from_directory:
        to_directory, to_name = folder.parent(target)
        with to_directory:
            os.stat(from_name, dir_fd=from_directory.descriptor, follow_symlinks=False)
            if from_name == to_name and os.path.samestat(
                os.fstat(from_directory.descriptor), os.fstat(to_directory.descriptor)
            ):
                return
            refuse_directory(to_directory, to_name, target)
            os.rename(
                from_name,
                to_name,
                src_dir_fd=from_directory.descriptor,
                dst_dir_fd=to_directory.descriptor,
            )


def refuse_directory(parent: Directory, name: str, path: str) -> None:
    """
    :raises TargetConflict: when the name is that of a directory.
    """
    try:
        status = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise TargetConflict(f"{path} is an existing directory", paths=[path])


def delete(
    folder: Directory,
    volume: str,
    paths: Sequence[str],
    recursive: bool,
    step: Step = unwatched,
) -> None:
    """
    Delete what can be deleted, then complain about what could not.

    :param volume: the volume's name, for messages.
    :param recursive: whether directories are deleted with what is in them.
    :param step: called often; what it raises ends the deletion.
    :raises StorageProxyError: the first failure, with all the paths that failed.
    """
    for path in paths:
        if path.rpartition("/")[2] in (".", ".."):
            raise InvalidSubpath.unnamed(path)
    failed: dict[str, StorageProxyError] = {}
    for path in paths:
        try:
            parent, name = folder.parent(path)
            with parent:
                status = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
                if recursive and stat.S_ISDIR(status.st_mode):
                    remove(parent, name, step)
                else:
                    os.unlink(name, dir_fd=parent.descriptor)
        except StorageProxyError as error:
            failed[path] = error
        except OSError as error:
            failed[path] = from_os_error(error, volume)
    if failed:
        first = next(iter(failed.values()))
        first.members["paths"] = list(failed)
        raise first


def read_metadata(folder: Directory) -> str:
    """
    The vfolder's metadata, in base64; empty when there is none.
    """
    try:
        with folder.open_file(METADATA, links=False) as file:
            return b64encode(file.read(0, MAX_METADATA)).decode("ascii")
    except FileNotFoundError:
        return ""


def write_metadata(folder: Directory, payload: bytes) -> None:
    """
    Keep metadata in the vfolder, where the original's backends look for it.

    :raises RequestTooLarge: when it is more than 10 MiB.
    """
    if len(payload) > MAX_METADATA:
        raise RequestTooLarge(f"metadata is limited to {MAX_METADATA} bytes")
    temporary = f".{METADATA}.{uuid4().hex}"
    try:
        with folder.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, links=False) as file:
            file.write([payload], 0)
            file.sync()
        refuse_directory(folder, METADATA, METADATA)
        os.rename(temporary, METADATA, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
        folder.sync()
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=folder.descriptor)
        except FileNotFoundError:
            pass
        raise
