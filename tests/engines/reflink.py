"""
A file system whose files can share blocks: XFS in a file, mounted by loop. It takes root.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

#: Bytes; mkfs.xfs(8) makes nothing smaller than 300 MB.
SIZE = 512 * 1024 * 1024


@contextmanager
def mounted(directory: str) -> Iterator[str]:
    """
    Make it, and mount it for as long as the block lasts.

    :param directory: an existing one, where the file and the mount point are made.
    :return: the path that it is mounted at.
    """
    image, top = (os.path.join(os.path.realpath(directory), name) for name in ("image", "top"))
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    os.mkdir(top)
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    try:
        yield top
    finally:
        # Lazily, so that a test that has left something open does not leave a mount behind.
        subprocess.run(["umount", "--lazy", top], check=True)
        os.unlink(image)
