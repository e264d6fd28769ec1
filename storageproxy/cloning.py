"""
A copy of what is in a directory, as ``cp --archive --reflink=auto`` makes it.

Both trees belong to people who may change them meanwhile: what is read is opened beneath the
source without following links, and what is written is always a new file beneath the target.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain

from attrs import define, evolve, field, frozen

from storageproxy.beneath import Directory, write_back
from storageproxy.errors import TargetConflict
from storageproxy.trees import VANISHED, Step, descend_far, lstats, walk

#: Names and values of extended attributes.
_Attributes = list[tuple[str, bytes]]

#: What tells a file from one that has got its number since: device, number, size, time.
_Identity = tuple[int, int, int, int]

#: Bytes that are copied between two looks at the progress.
COPY_STEP = 8 * 1024 * 1024

#: Bytes whose blocks are shared between two looks at the progress; a multiple of all block sizes.
#: Those of them that are not on the disk yet are written first.
SHARE_STEP = 256 * 1024 * 1024

#: Bytes of a file after which those before them are waited for to be on the disk. Twice as many are
#: left at most when it is closed, and on network file systems that waits for them.
WINDOW = 32 * 1024 * 1024

#: Bytes of a block, in which most file systems count.
BLOCK = 4096

#: Bytes that are copied by way of the daemon, as that costs less than to have the kernel do it.
SMALL = 64 * 1024

#: Files with several names that are remembered until all of their names have been seen, of about
#: 300 bytes each. Those beyond it are copied once for each name.
MOST_LINKED = 100_000

#: ``linux/fs.h``: FICLONERANGE and its struct file_clone_range, ioctl_ficlonerange(2).
_FICLONERANGE, _CLONE_RANGE = 0x4020940D, struct.Struct("=qQQQ")

#: Two files whose blocks are never shared, whichever they are.
_NEVER_SHARED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS})

#: The kernel does not copy between these two files, or shares no blocks of them.
_NOT_IN_KERNEL = frozenset(
    {
        errno.EXDEV,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.EPERM,
        errno.EBADF,
        errno.ETXTBSY,
    }
)

#: What the name of a file says that is none any more.
_NO_FILE = VANISHED | {errno.ENXIO, errno.ENODEV}

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: Extended attributes that the file system makes up, and the one that lends privileges.
_NOT_KEPT = ("ceph.", "security.capability")


def copy(
    source: Directory,
    target: Directory,
    step: Step,
    skip: str | None = None,
    durable: bool = False,
) -> None:
    """
    Copy what is in a directory into another one: files, directories and symbolic links as links,
    with permissions, times, extended attributes, hard links and holes.

    Blocks are shared where the file system can do that. Sockets, FIFOs and devices are left out,
    and so are owners and the bits of files that lend their rights. Of a file that grows meanwhile
    the copy has as much as there was when it was opened. What the target has already stays, but for
    files of the same names.

    :param step: called for each entry, and for each few MiB; what it raises ends the copy.
    :param skip: the name of an entry at the top that is not copied.
    :param durable: whether each file and directory is brought to stable storage. Otherwise nothing
        is synced, as one sync of all at the end takes much less time where it can be done
        (:meth:`storageproxy.beneath.Directory.can_sync_all`).
    :raises storageproxy.errors.TargetConflict: when a directory of the target has the name of a
        file; what was copied until then stays.
    """
    _Copy(target, step, durable).run(source, skip)


@frozen
class Needed:
    """
    The bytes that a copy takes where no blocks are shared. Neither counts a file again for each of
    its names.

    :param blocks: in whole blocks, without holes.
    :param sizes: as the sum of all sizes, with holes.
    """

    blocks: int
    sizes: int

    @property
    def least(self) -> int:
        """What it takes at least, whichever of both a storage system charges."""
        return min(self.blocks, self.sizes)


def needed(source: Directory, step: Step, skip: str | None = None) -> Needed:
    """
    :param step: as for :func:`copy`.
    :param skip: as for :func:`copy`.
    """
    seen: set[tuple[int, int]] = set()
    blocks = sizes = 0
    for _, _, batches in walk(source, skip, step=step):
        for status in chain.from_iterable(lstats(entries)[1] for entries in batches):
            step()
            taken = status.st_blocks * 512
            if not stat.S_ISREG(status.st_mode):
                blocks += taken
                if stat.S_ISLNK(status.st_mode):
                    sizes += status.st_size
                continue
            if status.st_nlink > 1:
                number = (status.st_dev, status.st_ino)
                if number in seen:
                    continue
                if len(seen) < MOST_LINKED:
                    seen.add(number)
            # More than the size is there for what may be added to it.
            blocks += min(-(-status.st_size // BLOCK) * BLOCK, taken)
            sizes += status.st_size
    return Needed(blocks, sizes)


def can_share(source: Directory, target: Directory) -> bool:
    """
    Whether a copy takes no space for the bytes of files; it is tried with two that have no names.
    """
    try:
        with _nameless(source) as original, _nameless(target) as made:
            os.write(original, bytes(4096))
            _share_range(original, made, 0, 4096)
    except OSError:
        return False
    return True


@contextmanager
def _nameless(directory: Directory) -> Iterator[int]:
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    descriptor = os.open(".", flags, 0o600, dir_fd=directory.descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@frozen
class _Linked:
    """
    A file of the copy that is to get more names.

    :param directory: the path of the one it is in, relative to the target.
    :param name: in that directory.
    :param names: how many the original has that are not seen yet.
    """

    directory: str
    name: str
    made: _Identity
    names: int


@define
class _Copy:
    target: Directory
    step: Step
    durable: bool
    #: Devices of which files are copied whose blocks cannot be shared with the target's.
    _unshared: set[int] = field(factory=set)
    _linked: dict[_Identity, _Linked] = field(factory=dict)

    def run(self, source: Directory, skip: str | None) -> None:
        # What is put into a directory changes its time, so it gets its own when all is in it.
        unfinished: list[tuple[str, os.stat_result, _Attributes]] = []
        for path, opened, batches in walk(source, skip, step=self.step):
            while unfinished and not path.startswith(f"{unfinished[-1][0]}/"):
                self._finish(*unfinished.pop())
            if path:
                status = os.fstat(opened.descriptor)
                unfinished.append((path, status, _attributes(opened.descriptor)))
            with descend_far(self.target, path or ".") as into:
                for entry in chain.from_iterable(batches):
                    self.step()
                    try:
                        self._entry(opened.descriptor, into.descriptor, path, entry)
                    except IsADirectoryError:
                        taken = f"{path}/{entry.name}" if path else entry.name
                        raise TargetConflict(
                            f"{taken} is an existing directory", paths=[taken]
                        ) from None
        while unfinished:
            self._finish(*unfinished.pop())
        if self.durable:
            self.target.sync()

    def _finish(self, path: str, status: os.stat_result, attributes: _Attributes) -> None:
        self.step(0)
        with descend_far(self.target, path) as made:
            _keep(made.descriptor, status, attributes)
            if self.durable:
                made.sync()

    def _entry(self, source: int, target: int, directory: str, entry: os.DirEntry[str]) -> None:
        if entry.is_file(follow_symlinks=False):
            self._file(source, target, directory, entry.name)
        elif entry.is_symlink():
            _link(source, target, entry)
        elif entry.is_dir(follow_symlinks=False):
            with suppress(FileExistsError):
                os.mkdir(entry.name, 0o700, dir_fd=target)

    def _file(self, source: int, target: int, directory: str, name: str) -> None:
        try:
            # A name that was read from a directory is one component, and cannot lead out.
            original = os.open(name, _READ, dir_fd=source)
        except OSError as error:
            if error.errno in _NO_FILE:
                return
            raise
        try:
            status = os.fstat(original)
            if not stat.S_ISREG(status.st_mode):
                return
            several = status.st_nlink > 1
            if several and self._link_again(status, target, name):
                return
            made = _create(target, name, status.st_mode)
            try:
                if status.st_size:
                    self._content(original, made, status)
                _keep(made, status, _attributes(original))
                if self.durable:
                    os.fsync(made)
                if several and len(self._linked) < MOST_LINKED:
                    self._linked[_identity(status)] = _Linked(
                        directory, name, _identity(os.fstat(made)), status.st_nlink - 1
                    )
            finally:
                os.close(made)
        finally:
            os.close(original)

    def _content(self, original: int, made: int, status: os.stat_result) -> None:
        size = status.st_size
        if self._share(original, made, status):
            return
        if status.st_blocks * 512 >= size:
            self._bytes(original, made, [(0, size)])
        else:
            self._bytes(original, made, _data(original, size))
            os.ftruncate(made, size)

    def _share(self, original: int, made: int, status: os.stat_result) -> bool:
        if status.st_dev in self._unshared:
            return False
        try:
            for start in range(0, status.st_size, SHARE_STEP):
                count = min(SHARE_STEP, status.st_size - start)
                _share_range(original, made, start, count)
                self.step(0, count)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
            if error.errno in _NEVER_SHARED:
                self._unshared.add(status.st_dev)
            return False
        return True

    def _bytes(self, original: int, made: int, parts: Iterable[tuple[int, int]]) -> None:
        written = waited = begun = 0
        for start, stop in parts:
            for end in _part(original, made, start, stop):
                self.step(0, end - start)
                written += end - start
                start = end
                if written >= WINDOW and self.durable:
                    # So that the last sync is not a long one.
                    os.fdatasync(made)
                    written = 0
                elif written >= WINDOW:
                    write_back(made, waited, begun, wait=True)
                    write_back(made, begun, end, wait=False)
                    written, waited, begun = 0, begun, end

    def _link_again(self, status: os.stat_result, target: int, name: str) -> bool:
        """Give one more name to the copy of a file, if there is one and it is where it was made."""
        key = _identity(status)
        linked = self._linked.pop(key, None)
        if linked is None:
            return False
        try:
            with (
                descend_far(self.target, linked.directory or ".") as above,
                Directory(
                    os.open(
                        linked.name,
                        os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
                        dir_fd=above.descriptor,
                    )
                ) as file,
            ):
                found = os.fstat(file.descriptor)
                # The number of one that was taken away may be that of something else by now.
                if _identity(found) != linked.made or not stat.S_ISREG(found.st_mode):
                    return False
                # By the descriptor, as the name may be that of another file by now.
                path = f"/proc/self/fd/{file.descriptor}"
                _replace(lambda: os.link(path, name, dst_dir_fd=target), target, name)
        except OSError:
            # It has as many names as it can have, was taken away, or names cannot be given here.
            return False
        if linked.names > 1:
            self._linked[key] = evolve(linked, names=linked.names - 1)
        return True


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _share_range(original: int, made: int, start: int, count: int) -> None:
    fcntl.ioctl(made, _FICLONERANGE, _CLONE_RANGE.pack(original, start, count, start))


def _part(original: int, made: int, start: int, stop: int) -> Iterator[int]:
    """Copy a part of a file step by step; where each of them ends."""
    in_kernel = stop - start > SMALL
    while start < stop:
        count = min(COPY_STEP, stop - start)
        if in_kernel:
            try:
                copied = os.copy_file_range(original, made, count, start, start)
            except OSError as error:
                if error.errno not in _NOT_IN_KERNEL:
                    raise
                in_kernel = False
                continue
        else:
            copied = os.pwrite(made, os.pread(original, count, start), start)
        if not copied:
            # Somebody has cut it.
            return
        start += copied
        yield start


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(descriptor, stop, os.SEEK_DATA)
            stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # There is nothing but a hole up to the end.
                return
            raise
        if start < stop:
            yield start, stop


def _link(source: int, target: int, entry: os.DirEntry[str]) -> None:
    name = entry.name
    try:
        status = entry.stat(follow_symlinks=False)
        link = os.readlink(name, dir_fd=source)
    except OSError as error:
        # EINVAL: it is no link any more.
        if error.errno in VANISHED | {errno.EINVAL}:
            return
        raise
    _replace(lambda: os.symlink(link, name, dir_fd=target), target, name)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _replace(create: Callable[[], None], directory: int, name: str) -> None:
    try:
        create()
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        create()


def _create(directory: int, name: str, mode: int) -> int:
    # Mostly that is the mode it keeps; it has to be writable for its attributes.
    mode = mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR
    try:
        return os.open(name, _CREATE, mode, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        return os.open(name, _CREATE, mode, dir_fd=directory)


def _keep(made: int, status: os.stat_result, attributes: _Attributes) -> None:
    """Give a copy what its original has besides the content."""
    for name, value in attributes:
        _set_attribute(made, name, value)
    # On files, the bits that are left out would lend the rights of the daemon's user. On
    # directories they say who owns what is made there, and who may take it away.
    mode = status.st_mode & (0o3777 if stat.S_ISDIR(status.st_mode) else 0o777)
    if os.fstat(made).st_mode & 0o7777 != mode:
        os.fchmod(made, mode)
    os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))


def _attributes(descriptor: int) -> _Attributes:
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
    found = []
    for name in names:
        if name.startswith(_NOT_KEPT):
            continue
        try:
            found.append((name, os.getxattr(descriptor, name)))
        except OSError as error:
            # It was taken away, or is not for us to see.
            if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise
    return found


def _set_attribute(descriptor: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(descriptor, name, value)
    except OSError as error:
        # Only those of users are the owner's; the others need privileges, and may not fit here.
        if name.startswith("user.") and error.errno != errno.EOPNOTSUPP:
            raise
