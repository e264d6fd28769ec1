"""
Every path operation of the daemon, beneath an open directory.

The owner of a vfolder writes into it while we work: symbolic links, swapped directories, FIFOs. So
no path is ever joined and checked. The kernel resolves it beneath a directory that is open already
(openat2(2) with ``RESOLVE_BENEATH``), and everything else is done by descriptor. All of it blocks:
it belongs into a volume's threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socket import socket
from types import TracebackType
from typing import Self, TypeAlias

from storageproxy import pagecache
from storageproxy.errors import InvalidSubpath, NotRegularFile

#: ``linux/openat2.h``; the number of the call is the same on all architectures.
_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
#: openat2(2): with RESOLVE_BENEATH and a rename elsewhere, ``..`` has to be tried again.
_RACES = 64

_syscall = ctypes.CDLL(None, use_errno=True).syscall


#: ``linux/fs.h``: SYNC_FILE_RANGE_WRITE, and with it SYNC_FILE_RANGE_WAIT_BEFORE and _AFTER.
_WRITE, _WRITE_AND_WAIT = 2, 7
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_syncfs = ctypes.CDLL(None, use_errno=True).syncfs

#: statfs(2), and the size of its struct, which has the type first, as a long, with room to spare.
_FUSE_SUPER_MAGIC, _STATUS_SIZE = 0x65735546, 256
_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


def _openat2(directory: int, path: str, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(
        flags | os.O_CLOEXEC,
        mode if flags & os.O_CREAT else 0,
        resolve | _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS,
    )
    size = ctypes.c_size_t(ctypes.sizeof(how))
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    for _ in range(_RACES):
        found: int = _syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), name, ctypes.byref(how), size
        )
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    if number == errno.EXDEV:
        raise InvalidSubpath(subpath=path)
    raise OSError(number, os.strerror(number), path)


def _walk(directory: int, path: str, flags: int, mode: int, resolve: int) -> int:
    """
    The same for kernels without openat2: one component at a time, symbolic links refused.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidSubpath(subpath=path)
    current = os.dup(directory)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = below
        found = os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW, mode, dir_fd=current)
        if resolve & _RESOLVE_NO_XDEV and _device(found) != _device(directory):
            os.close(found)
            raise InvalidSubpath(subpath=path)
        if flags & os.O_PATH and not flags & os.O_NOFOLLOW and _is_link(os.fstat(found)):
            os.close(found)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return found
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _has_link(directory, parts):
            if resolve & _RESOLVE_NO_SYMLINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
            raise InvalidSubpath(subpath=path) from None
        raise
    finally:
        os.close(current)


def _has_link(directory: int, parts: list[str]) -> bool:
    for stop in range(1, len(parts) + 1):
        try:
            status = os.stat("/".join(parts[:stop]), dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        if _is_link(status):
            return True
    return False


def _device(descriptor: int) -> int:
    return os.fstat(descriptor).st_dev


def _is_link(status: os.stat_result) -> bool:
    return stat.S_ISLNK(status.st_mode)


def _supported() -> bool:
    try:
        os.close(_openat2(-100, ".", os.O_PATH, 0, 0))
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


#: How a path is opened beneath a directory on this kernel.
open_beneath = _openat2 if _supported() else _walk


#: What bytes are written from.
Buffer: TypeAlias = bytes | bytearray | memoryview


class WritebackError(OSError):
    """Bytes that were written are lost on their way to the disk; which ones is not told."""


@contextmanager
def _telling_losses() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WritebackError(error.errno, error.strerror) from None


def write_back(descriptor: int, start: int, stop: int, *, wait: bool) -> None:
    """
    Have bytes of a file sent to the disk (sync_file_range(2)). It promises nothing.

    :param wait: return when they are there, rather than when it has begun.
    :raises WritebackError: when bytes are lost.
    """
    if start >= stop:
        return
    failed = _sync_file_range(
        ctypes.c_int(descriptor),
        ctypes.c_int64(start),
        ctypes.c_int64(stop - start),
        ctypes.c_uint(_WRITE_AND_WAIT if wait else _WRITE),
    )
    number = ctypes.get_errno() if failed else 0
    # The kernel tells each loss once: were it missed here, a later sync would succeed.
    if number and number not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
        raise WritebackError(number, os.strerror(number))


class _Closing:
    """What a ``with`` block closes."""

    __slots__ = ()

    close: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class File(_Closing):
    """
    An open regular file, which is closed only when no call on it is under way.

    A call that hangs in a thread goes on after its caller has given up. Closed behind its back,
    the number of its descriptor could name another file when it comes back.

    :param descriptor: belongs to the object from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """
        The descriptor, for as long as the block lasts.

        :raises OSError: EBADF when the file is closed.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            yield self._descriptor
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                os.close(self._descriptor)

    @property
    def closed(self) -> bool:
        """Whether it is closed, or will be when the calls on it have come back."""
        return self._closed

    def status(self) -> os.stat_result:
        """Its ``fstat``."""
        with self.descriptor() as descriptor:
            return os.fstat(descriptor)

    def path(self) -> str:
        """Where the kernel has it now; of no use for opening it."""
        with self.descriptor() as descriptor:
            return os.readlink(f"/proc/self/fd/{descriptor}")

    def read(self, offset: int, size: int) -> bytes:
        """Read at an offset; fewer bytes only at the end of the file."""
        with self.descriptor() as descriptor:
            return os.pread(descriptor, size, offset)

    def read_cached(self, offset: int, size: int) -> bytes | None:
        """See :func:`storageproxy.pagecache.read_cached`."""
        with self.descriptor() as descriptor:
            return pagecache.read_cached(descriptor, offset, size)

    def is_cached(self, offset: int, size: int) -> bool:
        """See :func:`storageproxy.pagecache.is_cached`."""
        with self.descriptor() as descriptor:
            return pagecache.is_cached(descriptor, offset, size)

    def send(self, socket: socket, offset: int, size: int) -> int:
        """
        Send bytes to a socket without a copy (sendfile(2)).

        :return: how many the socket has taken; 0 at the end of the file.
        :raises BlockingIOError: when it takes none.
        """
        with self.descriptor() as descriptor:
            return os.sendfile(socket.fileno(), descriptor, offset, size)

    def write(self, buffers: Iterable[Buffer], offset: int) -> int:
        """
        Write all of the buffers at an offset.

        :return: the number of bytes written.
        :raises OSError: what was written before it stays.
        """
        views = [memoryview(buffer) for buffer in buffers]
        written = first = 0
        with self.descriptor() as descriptor:
            while first < len(views):
                # IOV_MAX, limits.h
                done = os.pwritev(descriptor, views[first : first + 1024], offset + written)
                written += done
                while first < len(views) and done >= len(views[first]):
                    done -= len(views[first])
                    first += 1
                if first < len(views):
                    views[first] = views[first][done:]
        return written

    def write_back(self, start: int, stop: int, *, wait: bool) -> None:
        """See :func:`write_back`; it makes a later :meth:`sync_data` short."""
        with self.descriptor() as descriptor:
            write_back(descriptor, start, stop, wait=wait)

    def truncate(self, size: int) -> None:
        """Cut the file, or let it grow, to a number of bytes."""
        with self.descriptor() as descriptor:
            os.ftruncate(descriptor, size)

    def sync_data(self) -> None:
        """
        Return when its bytes are on stable storage (fdatasync(2)).

        :raises WritebackError: when some of them are lost.
        """
        with self.descriptor() as descriptor, _telling_losses():
            os.fdatasync(descriptor)

    def sync(self) -> None:
        """Return when its bytes and its metadata are on stable storage (fsync(2))."""
        with self.descriptor() as descriptor, _telling_losses():
            os.fsync(descriptor)

    def close(self) -> None:
        """Close it, or leave that to the last call that is under way."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = not self._users
        if last:
            os.close(self._descriptor)


class Directory(_Closing):
    """
    An open directory. Nothing that is named through it lies outside of it.

    :param descriptor: belongs to the object from now on.
    """

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def open_root(cls, path: str) -> Self:
        """
        Open a directory that the administrator has named.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def open(
        self, path: str, flags: int, mode: int = 0, *, links: bool = True, mounts: bool = True
    ) -> int:
        """
        Open a path beneath the directory.

        :param path: relative.
        :param flags: as for open(2); close-on-exec is added.
        :param mode: the permissions of a file that ``O_CREAT`` makes.
        :param links: whether symbolic links on the way may be followed. They are never followed
            out of the directory.
        :param mounts: whether the path may lead into what is mounted beneath the directory.
        :return: a descriptor.
        :raises InvalidSubpath: when the path leads out.
        """
        resolve = (0 if links else _RESOLVE_NO_SYMLINKS) | (0 if mounts else _RESOLVE_NO_XDEV)
        return open_beneath(self.descriptor, path, flags, mode, resolve)

    def descend(self, path: str, *, links: bool = True, mounts: bool = True) -> Self:
        """Open a directory beneath this one, as one of the same kind."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        return type(self)(self.open(path, flags, links=links, mounts=mounts))

    def open_file(
        self,
        path: str,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        links: bool = True,
        mounts: bool = True,
    ) -> File:
        """
        Open a regular file, and nothing else: a FIFO would hang, a device would be worse.

        :raises NotRegularFile: when it is anything else.
        """
        try:
            flags |= os.O_NONBLOCK | os.O_NOCTTY
            descriptor = self.open(path, flags, mode, links=links, mounts=mounts)
        except OSError as error:
            # A socket, or a FIFO that nobody reads (open(2)); a directory to be written.
            if error.errno in (errno.ENXIO, errno.EISDIR):
                raise NotRegularFile(paths=[path]) from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotRegularFile(paths=[path])
        except BaseException:
            os.close(descriptor)
            raise
        return File(descriptor)

    def status(self, path: str, *, follow: bool = False) -> os.stat_result:
        """
        The ``stat`` of a path.

        :param follow: whether a symbolic link at its end stands for its target.
        """
        descriptor = self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def parent(self, path: str) -> tuple[Self, str]:
        """
        Open the directory that holds a path, for what is done to the name itself.

        :return: the open directory and the last component.
        :raises InvalidSubpath: when the path has no last component that is a name.
        """
        above, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            raise InvalidSubpath.unnamed(path)
        return self.descend(above) if above else type(self)(os.dup(self.descriptor)), name

    def make_directories(self, path: str, mode: int = 0o755, *, durable: bool = True) -> None:
        """
        Make a directory and those above it that are missing.

        :param durable: return when they are on stable storage.
        :raises FileExistsError: when a file is in the way.
        """
        made, found = self.grow(path, mode)
        made.close()
        if durable:
            self.sync_names(path, found)

    def grow(self, path: str, mode: int = 0o755) -> tuple[Self, int]:
        """
        The same, but leave it to :meth:`sync_names` to bring it to stable storage.

        :return: the directory, open, and how many components of the path there were.
        """
        parts = path.split("/")
        found = len(parts)
        while True:
            try:
                current = self.descend("/".join(parts[:found]) or ".")
                break
            except FileNotFoundError:
                if not found:
                    raise
                found -= 1
        try:
            for part in parts[found:]:
                if part == "..":
                    raise InvalidSubpath(subpath=path)
                with suppress(FileExistsError):
                    os.mkdir(part, mode, dir_fd=current.descriptor)
                below = current.descend(part, links=False)
                current.close()
                current = below
        except BaseException:
            current.close()
            raise
        return current, found

    def sync_names(self, path: str, start: int) -> None:
        """
        Return when the last components of a path are on stable storage, as names.

        The one nearest to the top is first: that commits the journal, which has the others too.

        :param start: how many components at its beginning are there already.
        """
        parts = path.split("/")
        for stop in range(start, len(parts)):
            with self.descend("/".join(parts[:stop]) or ".") as directory:
                directory.sync()

    def ensure(self, path: str, mode: int = 0o755) -> Self:
        """Open a directory, which is made with those above it when it is missing."""
        try:
            return self.descend(path, links=False)
        except FileNotFoundError:
            self.make_directories(path, mode)
            return self.descend(path, links=False)

    def sync(self) -> None:
        """Return when the names in the directory are on stable storage."""
        os.fsync(self.descriptor)

    def can_sync_all(self) -> bool:
        """
        Whether :meth:`sync_all` does what it says. The process behind a FUSE mount is told of each
        fsync(2), and never of syncfs(2).
        """
        status = ctypes.create_string_buffer(_STATUS_SIZE)
        if _fstatfs(ctypes.c_int(self.descriptor), status):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return ctypes.c_long.from_buffer(status).value != _FUSE_SUPER_MAGIC

    def sync_all(self) -> None:
        """
        Return when the whole file system that it lies on is on stable storage (syncfs(2)).

        It may take as long as there is something to be written, by whomsoever.

        :raises WritebackError: when bytes are lost.
        """
        if _syncfs(ctypes.c_int(self.descriptor)):
            number = ctypes.get_errno()
            raise WritebackError(number, os.strerror(number))
