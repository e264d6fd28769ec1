# -*- test-case-name: tests.test_xfs_agent -*-
"""
How many descriptors each user may have the agent hold.

A process that has none left cannot accept connections, and loses directories that are sent to it.
So each user has a share, whatever the others do, and all of them leave some for the agent itself.
"""

from __future__ import annotations

import resource
from collections import Counter

from attrs import define, field

#: What the agent needs itself: its files, and a message with as many descriptors as one can have
#: (253, ``SCM_MAX_FD``), which come before anybody can refuse them.
RESERVED = 512

#: Descriptors that the agent asks for when it may have more than it was started with.
WANTED = 65_536


@define
class Shares:
    """
    Who holds how many.

    :param size: the share of each user.
    """

    size: int
    _held: Counter[int] = field(factory=Counter)

    def take(self, user: int, count: int) -> bool:
        """
        Take some for a user.

        :return: whether there were as many in his share; nothing is taken else.
        """
        if self._held[user] + count > self.size:
            return False
        self._held[user] += count
        return True

    def give_back(self, user: int, count: int) -> None:
        """Give back what was taken."""
        self._held[user] -= count


def of_process(users: int) -> Shares:
    """
    The shares in what this process may open, getrlimit(2), which is raised as far as it goes.

    :param users: how many there are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED:
        soft = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Shares((soft - min(RESERVED, soft // 2)) // users)
