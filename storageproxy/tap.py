"""
The command line: ``twistd storage-proxy``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from storageproxy.config import Configuration, ConfigurationError, find_file, load, standalone

#: What vfolders are made with in the background, as where the original is started by a system.
UMASK = 0o022

_GREETING = """
Storage Proxy runs on {directory}:
  client API   http://127.0.0.1:6021
  manager API  http://127.0.0.1:6022, with the secret in {directory}/manager-secret

Try an upload:
  S="X-BackendAI-Storage-Auth-Token: $(cat {directory}/manager-secret)"
  V=$(cat /proc/sys/kernel/random/uuid)
  curl -H "$S" http://127.0.0.1:6022/folder/create \\
    -d '{{"volume": "local", "vfid": "'$V'"}}'
  T=$(curl -s -H "$S" http://127.0.0.1:6022/folder/file/upload \\
    -d '{{"volume": "local", "vfid": "'$V'", "relpath": "hello.txt", "size": 6}}' | cut -d '"' -f 4)
  echo hello | curl -X PATCH "http://127.0.0.1:6021/upload?token=$T" --data-binary @- \\
    -H "Upload-Offset: 0" -H "Content-Type: application/offset+octet-stream"
  find {directory}/local -name hello.txt
"""


class Options(usage.Options):
    """
    What can be said on the command line. A configuration that cannot be used ends the process with
    status 1 and a line for each problem.
    """

    optParameters = [
        ["config", "f", None, "The configuration file (storage-proxy.toml)."],
        [
            "standalone",
            None,
            None,
            "Run without a configuration: one vfs volume and generated secrets in this directory.",
        ],
    ]
    optFlags = [["debug", None, "Log everything."]]

    settings: Configuration

    def opt_version(self) -> None:
        """Display the version and exit."""
        import storageproxy

        print(f"storage-proxy {storageproxy.__version__}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Load the configuration."""
        if self.parent and not self.parent.get("nodaemon") and self.parent.get("umask") is None:
            # In the background twistd would take all rights from others, sessions among them.
            self.parent["umask"] = UMASK
        try:
            if self["config"] and self["standalone"]:
                raise ConfigurationError(["--config and --standalone exclude each other"])
            if self["standalone"]:
                self.settings = standalone(Path(self["standalone"]))
            else:
                path = Path(self["config"]) if self["config"] else find_file(os.environ)
                self.settings = load(path)
        except ConfigurationError as error:
            _refuse(error)


def _refuse(error: ConfigurationError) -> None:
    for problem in error.problems:
        print(problem, file=sys.stderr)
    raise SystemExit(1)


def makeService(options: Options) -> IService:
    """
    :return: the daemon.
    """
    # Klein takes the reactor when it is imported; by now it is the one that was chosen.
    from twisted.internet import reactor

    from storageproxy.daemon import Daemon
    from storageproxy.logs import drivers, is_ours, observer, retell

    settings = options.settings
    greeting = ""
    if options["standalone"]:
        greeting = _GREETING.format(directory=Path(options["standalone"]).absolute())
    own_log = is_ours(options.parent or {})
    debug = bool(options["debug"]) or settings.debug.enabled
    outputs = drivers(settings.logging) if own_log else []

    def take_lines(lines: str) -> None:
        for output in outputs:
            output.write(lines)

    try:
        serving: Any
        if settings.storage_proxy.num_proc > 1:
            from storageproxy.workers import Workers

            if own_log:
                serving = Workers(settings, reactor, take_lines, debug)
            else:
                # The log of twistd takes what comes.
                serving = Workers(settings, reactor, retell, True)
        else:
            # Only who serves loads what that needs.
            from storageproxy.service import StorageProxy, favour_reactor

            serving = StorageProxy(settings, reactor)
            reactor.callWhenRunning(favour_reactor)
        log_observer = observer(settings.logging, debug, outputs) if own_log else None
        return Daemon(settings, serving, reactor, log_observer, greeting)
    except ConfigurationError as error:
        _refuse(error)
        raise
