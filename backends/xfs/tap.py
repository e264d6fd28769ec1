# -*- test-case-name: tests.test_xfs_tap -*-
"""
The command line: ``twistd storage-proxy-xfs-agent``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.application.service import IService
from twisted.python import usage

from backends.xfs.settings import AgentSettings, load
from storageproxy.config import ConfigurationError

#: Where the configuration is when the command line does not say.
FILE = "/etc/backend.ai/storage-proxy-xfs-agent.toml"


class Options(usage.Options):
    """
    What can be said on the command line. A configuration that cannot be used ends the process with
    status 1 and a line for each problem.
    """

    optParameters = [["config", "f", FILE, "The configuration file."]]
    optFlags = [
        ["reconcile", None, "Reconcile once, beside an agent that runs or without one, and end."],
        ["debug", None, "Log everything."],
    ]

    settings: AgentSettings

    def postOptions(self) -> None:
        """Load the configuration."""
        try:
            self.settings = load(Path(self["config"]))
        except ConfigurationError as error:
            for problem in error.problems:
                print(problem, file=sys.stderr)
            raise SystemExit(1) from None


def makeService(options: Options) -> IService:
    """
    :return: the agent.
    """
    from twisted.internet import reactor

    from backends.xfs.agent import Agent, Once
    from storageproxy.logs import drivers, is_ours, observer

    settings = options.settings
    log_observer = None
    if is_ours(options.parent or {}):
        log_observer = observer(settings.logging, bool(options["debug"]), drivers(settings.logging))
    made = Once if options["reconcile"] else Agent
    service: IService = made(settings, reactor, log_observer)
    return service
