"""
XFS in a file, mounted by loop: its files can share blocks. It takes root.

With project quotas it takes a kernel that has them, which :mod:`tests.engines.uml` brings.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

#: Bytes; mkfs.xfs(8) makes nothing smaller than 300 MB.
SIZE = 512 * 1024 * 1024


@contextmanager
def mounted(directory: str, *options: str, size: int = SIZE) -> Iterator[str]:
    """
    Make it, and mount it for as long as the block lasts.

    :param directory: an existing one, where the file and the mount point are made.
    :param options: mount options, such as ``pquota``.
    :param size: bytes of the file, which takes up what is used of it only.
    :return: the path that it is mounted at.
    """
    image, top = (os.path.join(os.path.realpath(directory), name) for name in ("image", "top"))
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    os.mkdir(top)
    subprocess.run(["mount", "-o", ",".join(("loop", *options)), image, top], check=True)
    try:
        yield top
    finally:
        # Lazily, so that a test that has left something open does not leave a mount behind.
        subprocess.run(["umount", "--lazy", top], check=True)
        os.unlink(image)
