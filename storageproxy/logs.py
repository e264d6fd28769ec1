"""
The log: one line of JSON for each event and for each request.

Tokens and secrets are never among the values: requests are logged by route, without their queries.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
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
    if event.get("log_access"):
        return _access_line(event)
    record: dict[str, Any] = {
        "time": _time(event["log_time"]),
        "level": event.get("log_level", LogLevel.info).name,
        "logger": event.get("log_namespace", ""),
        "message": _message(event),
    }
    for key in ("worker", "request_id"):
        if key in event:
            record[key] = event[key]
    failure = event.get("log_failure")
    if failure is not None:
        record["traceback"] = failure.getTraceback()
    return _encode(record) + "\n"


def _message(event: LogEvent) -> str:
    said = event.get("log_format")
    if isinstance(said, str) and "(" not in said:
        # formatEvent() can also call what it is given, and takes ten times as long.
        with suppress(Exception):
            return said.format_map(event)
    return formatEvent(event)


def _access_line(event: LogEvent) -> str:
    # Written out: an encoder for anything and formatEvent() take as long as a quarter of a small
    # request.
    worker = f'"worker": {event["worker"]}, ' if "worker" in event else ""
    return (
        f'{{"time": "{_time(event["log_time"])}", "level": "{event["log_level"].name}",'
        f' "logger": "{event["log_namespace"]}",'
        f' "message": {_encode(event["log_format"].format_map(event))}, {worker}'
        f'"request_id": {_encode(event["request_id"])}, "method": {_encode(event["method"])},'
        f' "route": {_encode(event["route"])}, "status": {event["status"]:d},'
        f' "bytes_sent": {event["bytes_sent"]:d}, "bytes_received": {event["bytes_received"]:d},'
        f' "duration": {event["duration"]:.6f}, "client": {_encode(event["client"])},'
        f' "aborted": {"true" if event["aborted"] else "false"}}}\n'
    )


def _time(seconds: float) -> str:
    whole, part = divmod(seconds, 1)
    return f"{_second(int(whole))}.{int(part * 1000):03}+00:00"


@lru_cache(1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


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
