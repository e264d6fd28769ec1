# -*- test-case-name: tests.test_logs -*-
"""
The log: one line of JSON for each event.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from storageproxy import config, logs
from storageproxy.logs import JSONObserver, drivers, line, observer, retell
from storageproxy.schema import ByteSize, Text
from tests.harness import Events
from tests.strategies import QUICK

SECRET = "eyJhbGciOiJIUzI1NiJ9.the-token.the-signature"
REQUEST: dict[str, Any] = {
    "log_access": True,
    "method": "PATCH",
    "route": "/upload",
    "status": 204,
    "bytes_sent": 0,
    "bytes_received": 17,
    "duration": 0.123456789,
    "client": "127.0.0.1",
    "aborted": False,
    "request_id": "abc123",
}


def emitted(emit: Callable[[Logger], object]) -> list[LogEvent]:
    """The events that a logger makes."""
    events: list[LogEvent] = []
    log = Logger("tests.logs", observer=events.append)  # type: ignore[arg-type]
    emit(log)
    return events


def settings(level: str = "INFO", **logging: Any) -> config.LoggingSettings:
    """What a configuration says of the log."""
    return config.LoggingSettings(level=level, **logging)


class LineTests(SynchronousTestCase):
    """One event, one line."""

    def only(self, emit: Callable[[Logger], object]) -> dict[str, Any]:
        """The record of the one event that is made, which is one line of plain ASCII."""
        [event] = emitted(emit)
        text = line(event)
        self.assertTrue(text.endswith("\n"))
        self.assertTrue(text[:-1].isascii() and text[:-1].isprintable(), text)
        record = json.loads(text)
        self.assertIsInstance(record, dict)
        return dict(record)

    def test_event(self) -> None:
        """An event has its time, level, logger and message."""
        record = self.only(lambda log: log.warn("{n} sheep", n=5))
        self.assertEqual(record["message"], "5 sheep")
        self.assertEqual(record["level"], "warn")
        self.assertEqual(record["logger"], "tests.logs")
        self.assertRegex(record["time"], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z")
        self.assertNotIn("request_id", record)

    def test_request(self) -> None:
        """A request is told with method, route, status, bytes, duration and its id."""
        record = self.only(lambda log: log.info("{method} {route}", **REQUEST))
        expected = {name: value for name, value in REQUEST.items() if name != "log_access"}
        expected["duration"] = 0.123457
        self.assertEqual({name: record[name] for name in expected}, expected)

    def test_nothing_else(self) -> None:
        """Whatever else an event has, its URI and token for instance, is not told."""
        record = self.only(
            lambda log: log.info(
                "{method} {route}",
                **REQUEST,
                uri=f"/upload?token={SECRET}",
                token=SECRET,
                headers={"x-backendai-storage-auth-token": SECRET},
            )
        )
        self.assertNotIn(SECRET, json.dumps(record))

    def test_request_id(self) -> None:
        """What happens during a request has the request's id."""
        record = self.only(lambda log: log.error("Ouch", request_id="abc"))
        self.assertEqual(record["request_id"], "abc")

    @QUICK
    @given(st.text(max_size=40))
    def test_control_characters(self, text: str) -> None:
        """No text breaks the line, nor drives the terminal of who reads it."""
        record = self.only(lambda log: log.info("{text}", text=text))
        self.assertEqual(record["message"], text)

    def test_escapes(self) -> None:
        """Newlines, escape sequences and separators of other alphabets among them."""
        text = "a\nb\r\x1b[31mred\x00\x7f\x85\u2028\u202e"
        record = self.only(lambda log: log.info("{text}", text=text))
        self.assertEqual(record["message"], text)

    @QUICK
    @given(st.text(st.sampled_from("{}a.!0:[]\n"), max_size=20))
    def test_bad_formats(self, text: str) -> None:
        """A message that cannot be formatted is still a line."""
        self.only(lambda log: log.info(text))

    def test_failure(self) -> None:
        """A failure has its traceback, in the same line, without the values in its frames."""

        def fail(token: str) -> None:
            raise RuntimeError("something\nbroke")

        def emit(log: Logger) -> None:
            try:
                fail(SECRET)
            except RuntimeError:
                log.failure("While {what}", what="testing")

        record = self.only(emit)
        self.assertEqual(record["message"], "While testing")
        self.assertEqual(record["level"], "critical")
        self.assertIn("RuntimeError", record["traceback"])
        self.assertIn("test_logs.py", record["traceback"])
        self.assertNotIn(SECRET, json.dumps(record))

    def test_failure_of_old(self) -> None:
        """Twisted's own way to report an error is a line with a traceback as well."""
        failure = Failure(ValueError("x"))
        record = json.loads(
            line({"log_time": 0.0, "log_failure": failure, "log_format": "Unhandled"})
        )
        self.assertIn("ValueError", record["traceback"])
        self.assertEqual(record["time"], "1970-01-01T00:00:00.000+00:00")

    def test_worker(self) -> None:
        """What a worker says has its number, the first one's also."""
        record = self.only(lambda log: log.info("x", worker=0))
        self.assertEqual(record["worker"], 0)

    def test_odd_values(self) -> None:
        """Values that JSON has not are told as text."""
        record = self.only(lambda log: log.info("x", **{**REQUEST, "client": Path("/x")}))
        self.assertEqual(record["client"], "/x")


class RetellTests(SynchronousTestCase):
    """The lines of workers, for a log that is not ours."""

    def told(self, *lines: str) -> list[LogEvent]:
        """The events that lines become."""
        events = Events(self)
        retell("".join(lines))
        return list(events)

    def test_event(self) -> None:
        """Level, logger, worker and message are what they were, even if they look like a format."""
        [event] = emitted(lambda log: log.warn("{n} sheep", n="{five}", worker=1))
        [again] = self.told(line(event))
        self.assertEqual(formatEvent(again), "[worker 1] {five} sheep")
        self.assertEqual(again["log_level"], LogLevel.warn)
        self.assertEqual(again["log_namespace"], "tests.logs")

    def test_request(self) -> None:
        """A request keeps its values."""
        [event] = emitted(lambda log: log.info("{method} {route}", worker=0, **REQUEST))
        [again] = self.told(line(event))
        self.assertEqual(again["status"], 204)
        self.assertEqual(again["request_id"], "abc123")

    def test_failure(self) -> None:
        """A traceback stays with its message."""

        def emit(log: Logger) -> None:
            log.failure("While testing", Failure(ValueError("wrong")), worker=0)

        [event] = emitted(emit)
        [again] = self.told(line(event))
        self.assertIn("While testing", formatEvent(again))
        self.assertIn("ValueError: wrong", formatEvent(again))

    def test_something_else(self) -> None:
        """What is no line of ours, as a library has printed it, is told as it is."""
        first, second, third = self.told("hello {world}\n", "42\n", '{"level": "odd"}\n')
        self.assertEqual(formatEvent(first), "hello {world}")
        self.assertEqual(formatEvent(second), "42")
        self.assertEqual(formatEvent(third), '{"level": "odd"}')


class ObserverTests(SynchronousTestCase):
    """Where the lines go."""

    def setUp(self) -> None:
        """Close the files that are made."""
        test = self

        class Closing(LogFile):
            """A file that is closed in the end."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                test.addCleanup(self.close)

        self.patch(logs, "LogFile", Closing)

    def lines(
        self,
        configuration: config.LoggingSettings,
        debug: bool = False,
        namespace: str = "tests.logs",
    ) -> list[dict[str, Any]]:
        """What is on the console after an event of each level."""
        console = io.StringIO()
        made = observer(configuration, debug, drivers(configuration, console))
        log = Logger(namespace, observer=made)
        for level in LogLevel.iterconstants():
            log.emit(level, "said")
        return [json.loads(text) for text in console.getvalue().splitlines()]

    def test_interfaces(self) -> None:
        """Both are what Twisted calls an observer."""
        verifyObject(ILogObserver, observer(settings(), False, []))
        verifyObject(ILogObserver, JSONObserver(print, print))

    def test_flushed(self) -> None:
        """Each line is written at once."""
        calls: list[str] = []
        made = JSONObserver(calls.append, lambda: calls.append("flush"))
        log = Logger("tests.logs", observer=made)
        log.info("a")
        log.info("b")
        self.assertEqual([call == "flush" for call in calls], [False, True, False, True])

    def test_levels(self) -> None:
        """Events below the level of the configuration are not told; its letter case is free."""
        names = ["debug", "info", "warn", "error", "critical"]
        for level, first in (
            ("NOTSET", 0),
            ("DEBUG", 0),
            ("INFO", 1),
            ("info", 1),
            ("WARNING", 2),
            ("ERROR", 3),
            ("CRITICAL", 4),
        ):
            told = {record["level"] for record in self.lines(settings(level))}
            self.assertEqual(told, set(names[first:]), level)

    def test_debug(self) -> None:
        """Debugging tells everything, whatever the level is."""
        self.assertEqual(len(self.lines(settings("CRITICAL"), debug=True)), 5)

    def test_connections(self) -> None:
        """Connections to others are told when everything is; what goes wrong with them always."""
        for level, debug, told in (
            ("INFO", False, ["warn", "error", "critical"]),
            ("ERROR", False, ["error", "critical"]),
            ("INFO", True, ["debug", "info", "warn", "error", "critical"]),
        ):
            lines = self.lines(settings(level), debug, namespace="twisted.web.client._Factory")
            self.assertEqual([record["level"] for record in lines], told)

    def test_file(self) -> None:
        """A file is made with its directory, and has the lines that the console has not."""
        directory = Path(self.mktemp()) / "a" / "b"
        wanted = config.FileLogSettings(Text(str(directory)), Text("proxy.log"))
        self.assertEqual(self.lines(settings(drivers=["file"], file=wanted)), [])
        text = (directory / "proxy.log").read_text("ascii")
        self.assertEqual(len([json.loads(one) for one in text.splitlines()]), 4)

    def test_both(self) -> None:
        """Console and file have the same."""
        directory = self.mktemp()
        wanted = config.FileLogSettings(Text(directory), Text("proxy.log"))
        told = self.lines(settings(drivers=["console", "file"], file=wanted))
        text = (Path(directory) / "proxy.log").read_text("ascii")
        self.assertEqual([json.loads(one) for one in text.splitlines()], told)

    def test_neither(self) -> None:
        """With a driver that is not served here alone, the console is used."""
        self.assertEqual(len(self.lines(settings(drivers=["logstash"]))), 4)
        self.assertEqual(len(self.lines(settings(drivers=[]))), 4)

    def test_rotation(self) -> None:
        """A file that is full is put aside, and not more of them are kept than are wanted."""
        directory = self.mktemp()
        wanted = config.FileLogSettings(
            Text(directory), Text("proxy.log"), backup_count=2, rotation_size=ByteSize(200)
        )
        configuration = settings(drivers=["file"], file=wanted)
        log = Logger("tests.logs", observer=observer(configuration, False, drivers(configuration)))
        for number in range(20):
            log.info("event number {number} of twenty", number=number)
        found = sorted(os.listdir(directory))
        self.assertEqual(found, ["proxy.log", "proxy.log.1", "proxy.log.2"])
        for name in found:
            for text in (Path(directory) / name).read_text("ascii").splitlines():
                json.loads(text)
