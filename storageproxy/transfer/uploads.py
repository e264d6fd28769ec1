"""
Upload sessions: what the requests of the client API do to them.

An offset that was told does not shrink, as far as the volume's durability goes; a session whose
bytes the disk has lost is given up. Each step of a session is one call in the volume's threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TypeVar

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from storageproxy import tus
from storageproxy.background import Background
from storageproxy.beneath import File, WritebackError
from storageproxy.errors import (
    ChecksumMismatch,
    NoSuchUpload,
    OffsetMismatch,
    ShuttingDown,
    UploadLocked,
    UploadTooLarge,
    VolumeUnavailable,
)
from storageproxy.interfaces import IVolume
from storageproxy.transfer.locks import PATIENCE, Lease, SessionLocks
from storageproxy.transfer.request import StreamingRequest
from storageproxy.transfer.sink import BLOCK, FileSink, Outcome
from storageproxy.transfer.staging import (
    Busy,
    Completed,
    Staged,
    Staging,
    check_target,
    is_wanted,
)
from storageproxy.vfolder import VFolderID

T = TypeVar("T")

#: Seconds between two tries to get a session that another process holds.
POLL = 0.1
#: Seconds after which who receives looks whether another process wants the session.
LOOK = 0.5


class Interrupted(Exception):
    """The client is gone, or a newer request took over: there is nobody to answer."""


@frozen
class Session:
    """
    An upload session, as its token describes it.

    :param name: the name of its staging file.
    :param path: where the file has to go, relative to the vfolder.
    :param size: bytes that were announced.
    """

    volume: IVolume
    vfid: VFolderID
    name: str
    path: str
    size: int


@frozen
class Settled:
    """
    A session whose bytes are where the durability of its volume wants them.

    :param offset: how many there are.
    :param finished: whether the file has got its name just now.
    """

    offset: int
    finished: bool


@define(eq=False)
class Uploads:
    """
    All uploads of this process.

    :param reactor: for bounded waits.
    """

    reactor: IReactorTime
    _log: Logger = field(factory=lambda: Logger("storageproxy.uploads"))
    _locks: SessionLocks = field(init=False)
    _background: Background = field(factory=Background)
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        self._locks = SessionLocks(self.reactor)

    async def create(self, volume: IVolume, vfid: VFolderID, path: str, size: int) -> str:
        """
        Begin a session. An empty file is made at once: clients send nothing for it.

        :return: the name of the session.
        """

        unnamed = Session(volume, vfid, "", path, size)
        session: Session
        session, settled = await volume.threads.submit(
            partial(_within, unnamed, partial(_create, unnamed)),
            volume.threads.deadline if size else _deadline(volume),
            None,
        )
        self._tell(session, settled)
        return session.name

    def offset(self, session: Session) -> Deferred[int]:
        """
        What a HEAD is told: how many bytes a session has, where the volume's durability wants them.
        """
        return self._background.run("an upload", self._offset(session))

    def append(
        self, session: Session, patch: tus.Patch, request: StreamingRequest
    ) -> Deferred[int]:
        """
        Add a request's body to a session.

        Cancelling changes nothing: what has arrived is kept, whether or not the client still waits.

        :return: a Deferred with the new offset.
        :raises Interrupted: when there is nobody left to be told.
        """
        return self._background.run("an upload", self._append(session, patch, request))

    def terminate(self, session: Session) -> Deferred[None]:
        """
        End a session, and forget its bytes.

        :raises NoSuchUpload: also when it is complete: the file is not the session's any more.
        """
        return self._background.run("an upload", self._terminate(session))

    async def stop(self) -> None:
        """Let all uploads keep what they have, and end."""
        self._stopping = True
        self._locks.stop_all()
        await self._background.wait()

    async def _offset(self, session: Session) -> int:
        async with self._lease(session):
            settled = await self._in_turn(session, partial(_settle, session), None)
            self._tell(session, settled)
            return settled.offset

    async def _append(self, session: Session, patch: tus.Patch, request: StreamingRequest) -> int:
        async with self._lease(session) as lease:
            if self._stopping:
                raise ShuttingDown()
            append = _Append(session, patch, request.body_length)
            if request.complete and request.received < BLOCK:
                request.deliver_body(append.sink)
                settled = await self._in_turn(session, append.whole, None)
            else:
                staged = await self._in_turn(session, append.begin, _close)
                if staged is None:
                    return session.size
                try:
                    settled = await self._receive(append, staged, request, lease)
                finally:
                    if not staged.file.closed:
                        # Its last call has not been made, or does not come back.
                        session.volume.threads.clean_up(staged.file.close)
            self._tell(session, settled)
            if append.sink.outcome is Outcome.CUT:
                raise Interrupted(f"the client is gone, and {settled.offset} bytes are kept")
            return settled.offset

    async def _receive(
        self, append: _Append, staged: Staged, request: StreamingRequest, lease: Lease
    ) -> Settled:
        session, sink = append.session, append.sink
        lease.on_stop(sink.stop)
        request.deliver_body(sink)
        looking = LoopingCall(self._look, session, lease)
        looking.clock = self.reactor
        looking.start(LOOK, now=False)
        try:
            await sink.done
        finally:
            looking.stop()
        threads = session.volume.threads
        end = partial(_within, session, partial(append.end, staged=staged))
        settled: Settled = await threads.submit(end, threads.slow_deadline, None)
        return settled

    async def _look(self, session: Session, lease: Lease) -> None:
        with suppress(OSError, VolumeUnavailable):
            if await session.volume.threads.run(_is_wanted, session):
                lease.ask()

    async def _terminate(self, session: Session) -> None:
        async with self._lease(session):
            await self._in_turn(
                session, partial(_discard, session), None, session.volume.threads.slow_deadline
            )

    @asynccontextmanager
    async def _lease(self, session: Session) -> AsyncIterator[Lease]:
        """Have a session, against other requests of this process."""
        key = (session.volume.name, session.name)
        lease = await self._locks.acquire(key)
        try:
            yield lease
        finally:
            self._locks.release(key)

    async def _in_turn(
        self,
        session: Session,
        operation: Callable[[Staging], T],
        discard: Callable[[T], object] | None,
        deadline: float | None = None,
    ) -> T:
        """Do something in a thread, when no other process holds the session."""
        threads = session.volume.threads
        if deadline is None:
            deadline = _deadline(session.volume)
        end = self.reactor.seconds() + PATIENCE
        while True:
            try:
                result: T = await threads.submit(
                    partial(_within, session, operation), deadline, discard
                )
                return result
            except Busy:
                if self.reactor.seconds() >= end:
                    threads.clean_up(partial(_within, session, partial(_want_no_more, session)))
                    raise UploadLocked() from None
                await deferLater(self.reactor, POLL)

    def _tell(self, session: Session, settled: Settled) -> None:
        if settled.finished:
            self._log.info(
                "Volume {volume}: a file of {size} bytes is uploaded to vfolder {vfid}.",
                volume=session.volume.name,
                vfid=str(session.vfid),
                size=session.size,
            )


def _deadline(volume: IVolume) -> float:
    """Seconds for what syncs what has come, where anything is synced."""
    threads = volume.threads
    seconds: float = threads.slow_deadline if volume.durability.keeps_files else threads.deadline
    return seconds


# ---- in threads


def _within(session: Session, operation: Callable[[Staging], T]) -> T:
    volume = session.volume
    with volume.open_root() as root, volume.changing(session.vfid, root) as folder:
        return operation(Staging(root, folder, volume.durability))


def _create(session: Session, staging: Staging) -> tuple[Session, Settled]:
    """Make a session, which has no name yet."""
    check_target(staging.folder, session.path)
    session = evolve(session, name=staging.create())
    if session.size:
        return session, Settled(0, False)
    try:
        return session, _settle(session, staging)
    except BaseException:
        # Nobody will ever know of this session, which may be gone already.
        with suppress(NoSuchUpload, OSError):
            _discard(session, staging)
        raise


def _settle(session: Session, staging: Staging) -> Settled:
    """Put on stable storage what a session has, and finish it if that is all of it."""
    try:
        staged = staging.hold(session.name)
    except Completed:
        return Settled(session.size, False)
    with staged.file as file, _giving_up(session, staging, file):
        return _conclude(session, staging, file, staged.offset)


@contextmanager
def _giving_up(session: Session, staging: Staging, file: File) -> Iterator[None]:
    """Discard a session when bytes are lost that may have been told: none can be trusted."""
    try:
        yield
    except WritebackError:
        staging.discard(session.name, file)
        raise


def _conclude(session: Session, staging: Staging, file: File, offset: int) -> Settled:
    if offset < session.size:
        staging.settle(session.name, file, offset)
        return Settled(offset, False)
    staging.finish(session.name, file, session.path)
    return Settled(session.size, True)


def _discard(session: Session, staging: Staging) -> None:
    try:
        staged = staging.hold(session.name)
    except Completed:
        raise NoSuchUpload("the upload is complete, and its file stays") from None
    with staged.file as file:
        staging.discard(session.name, file)


def _want_no_more(session: Session, staging: Staging) -> None:
    staging.take_back_note(session.name)


def _is_wanted(session: Session) -> bool:
    with session.volume.open_root() as root:
        return is_wanted(root, session.name)


class _Append:
    """
    A PATCH: its bytes, and what becomes of them.

    :param length: bytes of the body, None when the client does not say.
    """

    def __init__(self, session: Session, patch: tus.Patch, length: int | None) -> None:
        self.session = session
        self._patch = patch
        self._length = length
        checksum = patch.checksum
        durability = session.volume.durability
        self.sink = FileSink(
            session.volume.threads,
            patch.offset,
            session.size - patch.offset,
            None if checksum is None else tus.CHECKSUMS[checksum.algorithm](),
            write_back=durability.keeps_files,
            keep=None if durability.trusts_sizes or checksum is not None else self._keep,
        )

    def whole(self, staging: Staging) -> Settled:
        """All of it, when its body is there already."""
        staged = self.begin(staging)
        if staged is None:
            return Settled(self.session.size, False)
        return self.end(staging, staged)

    def begin(self, staging: Staging) -> Staged | None:
        """
        Take hold of the session.

        :return: None when all of the file is there already.
        """
        size = self.session.size
        try:
            staged = staging.hold(self.session.name)
        except Completed:
            tus.check_append(self._patch, size, size, self._length)
            if self._length is None:
                raise OffsetMismatch("the upload is complete") from None
            return None
        try:
            with _giving_up(self.session, staging, staged.file):
                # A process that was killed may have left bytes unsynced.
                if staged.offset == self._patch.offset:
                    staging.resume(self.session.name, staged.file, staged.offset)
                else:
                    # A 409 tells their number.
                    staging.settle(self.session.name, staged.file, staged.offset)
            tus.check_append(self._patch, staged.offset, size, self._length)
            if self._patch.checksum is not None:
                staging.remember_fallback(self.session.name, staged.file, staged.offset)
            self.sink.file = staged.file
            return staged
        except BaseException:
            staged.file.close()
            raise

    def end(self, staging: Staging, staged: Staged) -> Settled:
        """
        Write the last bytes, and keep what counts. The session is free then.
        """
        name = self.session.name
        with staged.file as file:
            unsure = self._patch.checksum is not None
            try:
                self.sink.flush()
                if self.sink.outcome is Outcome.OVERFLOW:
                    # Nothing of it: had the file its full size, it would be taken for complete.
                    unsure = True
                    raise UploadTooLarge(f"more bytes than the {self.session.size} announced")
                if unsure:
                    self._verify()
                    staging.keep(name, file, self.sink.offset)
                    unsure = False
                return _conclude(self.session, staging, file, self.sink.offset)
            except WritebackError:
                # Without a sync at each patch nobody knows which bytes those are.
                staging.keep(name, file, staged.offset if staging.durability.keeps_offsets else 0)
                raise
            except BaseException:
                if unsure:
                    staging.keep(name, file, staged.offset)
                elif not staging.durability.trusts_sizes:
                    with suppress(OSError):
                        staging.settle(name, file, file.status().st_size)
                raise

    def _keep(self, offset: int) -> None:
        """Have bytes count while more come, whatever becomes of this machine."""

        def keep(staging: Staging) -> None:
            staging.settle(self.session.name, self.sink.file, offset)

        _within(self.session, keep)

    def _verify(self) -> None:
        announced = self._patch.checksum
        if self.sink.outcome is Outcome.CUT:
            raise Interrupted("the client is gone before its bytes could be verified")
        if announced is not None and self.sink.digest() != announced.digest:
            raise ChecksumMismatch(
                f"the {announced.algorithm} of the bytes is not the one announced"
            )


def _close(staged: Staged | None) -> None:
    if staged is not None:
        staged.file.close()
