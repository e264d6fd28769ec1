"""
The log: one line of JSON for each event and for each request.

Tokens and secrets are never among the values: requests are logged by route, without their queries.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    InvalidLogLevelError,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

from storageproxy.config import LoggingSettings

_REQUEST = (
    "method",
    "route",
    "status",
    "bytes_sent",
    "bytes_received",
    "duration",
    "client",
    "aborted",
)
_LEVELS = {
    "NOTSET": LogLevel.debug,
    "DEBUG": LogLevel.debug,
    "INFO": LogLevel.info,
    "WARNING": LogLevel.warn,
    "ERROR": LogLevel.error,
    "CRITICAL": LogLevel.critical,
}
_encode = json.JSONEncoder(default=str).encode


def line(event: LogEvent) -> str:
    """
    An event as one line of JSON, with a newline at its end.
    """
    when = datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds")
    level = event.get("log_level", LogLevel.info)
    is_access = event.get("log_access")
    record: dict[str, Any] = {
        "time": when,
        "level": level.name,
        "logger": event.get("log_namespace", ""),
        # What else formatEvent() can do takes it as long as half of a small request.
        "message": event["log_format"].format_map(event) if is_access else formatEvent(event),
    }
    for key in ("worker", "request_id"):
        if key in event:
            record[key] = event[key]
    if is_access:
        record.update((key, event[key]) for key in _REQUEST)
        record["duration"] = round(record["duration"], 6)
    failure = event.get("log_failure")
    if failure is not None:
        record["traceback"] = failure.getTraceback()
    return _encode(record) + "\n"


@implementer(ILogObserver)
class JSONObserver:
    """
    Writes events to a file.

    :param write: takes text.
    :param flush: called when a line is written.
    """

    def __init__(self, write: Callable[[str], object], flush: Callable[[], object]) -> None:
        self._write = write
        self._flush = flush

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        self.write(line(event))

    def write(self, lines: str) -> None:
        """Write lines that are made already."""
        self._write(lines)
        self._flush()


def drivers(settings: LoggingSettings, stdout: TextIO | None = None) -> list[JSONObserver]:
    """
    Where the configuration wants the log to go.
    """
    observers: list[JSONObserver] = []
    if "file" in settings.drivers and settings.file is not None:
        wanted = settings.file
        os.makedirs(wanted.path, exist_ok=True)
        file = LogFile(
            wanted.filename,
            wanted.path,
            rotateLength=wanted.rotation_size,
            maxRotatedFiles=wanted.backup_count,
        )
        observers.append(JSONObserver(file.write, file.flush))
    if "console" in settings.drivers or not observers:
        console = stdout or sys.stdout
        observers.append(JSONObserver(console.write, console.flush))
    return observers


def is_ours(parent: Mapping[str, Any]) -> bool:
    """
    Whether we write the log. What twistd was told about it counts more than the configuration.

    :param parent: its options. In the background there is no standard output.
    """
    elsewhere = any(parent.get(name) for name in ("logfile", "logger", "syslog"))
    return bool(parent.get("nodaemon", True)) and not elsewhere


def observer(settings: LoggingSettings, debug: bool, observers: Sequence[JSONObserver]) -> Any:
    """
    What the configuration wants of the log.

    :param debug: whether everything is logged, whatever it says.
    :param observers: who gets it.
    :return: an :class:`ILogObserver`.
    """
    level = LogLevel.debug if debug else _LEVELS[settings.level.upper()]
    predicate = LogLevelFilterPredicate(defaultLogLevel=level)
    if not debug:
        # It tells of each connection that it makes to somebody.
        predicate.setLogLevelForNamespace("twisted.web.client", max(level, LogLevel.warn))

    @implementer(ILogObserver)
    def all_of_them(event: LogEvent) -> None:
        for one in observers:
            one(event)

    return FilteringLogObserver(all_of_them, [predicate])


def retell(lines: str) -> None:
    """
    Make events again of lines, for a log that is not ours.

    :param lines: whole ones, as :func:`line` makes them.
    """
    for text in lines.splitlines():
        try:
            record = json.loads(text)
            log = Logger(record["logger"])
            level = LogLevel.lookupByName(record["level"])
            said = [record["message"], *filter(None, [record.get("traceback")])]
        except (ValueError, TypeError, KeyError, InvalidLogLevelError):
            Logger().info("{said}", said=text)
            continue
        # Names of Twisted's own, as "time" is one, are not for values.
        values = {key: record[key] for key in ("request_id", *_REQUEST) if key in record}
        log.emit(
            level,
            "[worker {worker}] {said}",
            worker=record.get("worker", ""),
            said="\n".join(said),
            **values,
        )
