# -*- test-case-name: tests.test_layers -*-
"""
Imports go one way: pure modules, file system, transfer, API, service, command line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import storageproxy

ROOT = Path(storageproxy.__file__).absolute().parent.parent
PURE = {"durability", "errors", "vfolder", "schema", "tokens", "tus", "conditional"}


def find_modules() -> dict[str, ast.Module]:
    """The modules of our packages: dotted name to syntax tree."""
    found = {}
    for package in ("storageproxy", "backends"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = find_modules()


def imports(name: str, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """
    What a module imports, in functions also: the names of modules, ours as exactly as possible.
    """
    found = set()
    for node in nodes or ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner in MODULES or node.module.partition(".")[0] not in (
                    "storageproxy",
                    "backends",
                )
                found.add(inner if is_module else node.module)
    return found


def is_in(name: str, *packages: str) -> bool:
    """Whether something is one of some packages, or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def at_runtime(name: str) -> Iterator[ast.AST]:
    """The nodes of a module, without what is there for type checkers only."""
    waiting: list[ast.AST] = [MODULES[name]]
    while waiting:
        node = waiting.pop()
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            waiting += ast.iter_child_nodes(node)


def closure(name: str) -> set[str]:
    """All that is imported by a module, and by those of ours that it imports."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        new = set().union(*(imports(one) for one in waiting if one in MODULES)) - found
        found |= new
        waiting = new
    return found


class LayerTests(SynchronousTestCase):
    """Who may import whom."""

    def assertNever(self, importers: Mapping[str, set[str]], *packages: str) -> None:
        """Complain about each import of one of the packages."""
        self.assertTrue(importers, "there are such modules at all")
        wrong = [
            f"{name} imports {imported}"
            for name, all_imported in importers.items()
            for imported in sorted(all_imported)
            if is_in(imported, *packages)
        ]
        self.assertEqual(wrong, [])

    def test_found(self) -> None:
        """The modules that this is about exist."""
        self.assertLessEqual({f"storageproxy.{name}" for name in PURE}, set(MODULES))
        self.assertIn("backends.vfs", MODULES)
        self.assertIn("storageproxy.beneath", imports("storageproxy.files"))
        self.assertIn("twisted.internet.defer.Deferred", imports("storageproxy.threads"))

    def test_pure(self) -> None:
        """Pure modules know nothing of the reactor, of transfers or of the API."""
        self.assertNever(
            {name: closure(f"storageproxy.{name}") for name in PURE},
            "twisted.internet",
            "storageproxy.transfer",
            "storageproxy.api",
            "storageproxy.service",
            "storageproxy.config",
            "backends",
        )

    def test_pure_at_runtime(self) -> None:
        """Neither does anything that they import from elsewhere."""
        program = (
            f"import {', '.join(f'storageproxy.{name}' for name in sorted(PURE))}, sys;"
            " print([name for name in sys.modules if name.startswith('twisted.internet')])"
        )
        said = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.assertEqual(said.stdout.strip(), "[]")

    def test_backends(self) -> None:
        """The daemon knows its backends by plugins only."""
        self.assertNever(
            {name: imports(name) for name in MODULES if is_in(name, "storageproxy")}, "backends"
        )

    def test_backends_below(self) -> None:
        """A backend knows nothing of the service, and serves no HTTP; it may ask by it."""
        self.assertNever(
            {name: closure(name) for name in MODULES if is_in(name, "backends")},
            "storageproxy.api",
            "storageproxy.transfer",
            "storageproxy.service",
            "storageproxy.tap",
            "twisted.web.resource",
            "twisted.web.server",
            "klein",
        )

    def test_transfer(self) -> None:
        """Transfers know nothing of the API that asks for them."""
        self.assertNever(
            {name: closure(name) for name in MODULES if is_in(name, "storageproxy.transfer")},
            "storageproxy.api",
            "storageproxy.service",
            "storageproxy.tap",
            "klein",
        )

    def test_api(self) -> None:
        """Nothing but the service imports the API."""
        importers = {
            name
            for name in MODULES
            if not is_in(name, "storageproxy.api")
            and any(is_in(imported, "storageproxy.api") for imported in imports(name))
        }
        self.assertEqual(importers, {"storageproxy.service"})

    def test_service(self) -> None:
        """Nothing but the command line, here and in a worker, imports the service."""
        importers = {name for name in MODULES if "storageproxy.service" in imports(name)}
        self.assertEqual(importers, {"storageproxy.tap", "storageproxy.worker"})

    def test_workers(self) -> None:
        """Who only watches those that serve does not load what they need for it."""
        self.assertNever(
            {"storageproxy.workers": closure("storageproxy.workers")},
            "storageproxy.api",
            "storageproxy.transfer",
            "storageproxy.service",
            "twisted.web",
            "klein",
        )

    def test_filesystem(self) -> None:
        """Below the transfers nothing knows of HTTP."""
        disk = ("beneath", "files", "trees", "removal", "cloning")
        below = (*disk, "process", "threads", "interfaces", "volumes", "background")
        self.assertNever(
            {name: closure(f"storageproxy.{name}") for name in below},
            "storageproxy.transfer",
            "storageproxy.api",
            "storageproxy.service",
            "twisted.web",
            "klein",
        )

    def test_no_cycles(self) -> None:
        """No module imports itself by way of others."""
        graph = {
            name: {one for one in imports(name, at_runtime(name)) if one != "storageproxy"}
            for name in MODULES
        }
        TopologicalSorter(graph).prepare()

    def test_reactor(self) -> None:
        """The reactor is passed in: no module imports it but the command lines, in a function."""
        at_import = {
            name
            for name, tree in MODULES.items()
            if "twisted.internet.reactor" in imports(name, iter(tree.body))
        }
        anywhere = {name for name in MODULES if "twisted.internet.reactor" in imports(name)}
        self.assertEqual(at_import, set())
        command_lines = {"storageproxy.tap", "storageproxy.worker", "backends.xfs.tap"}
        self.assertLessEqual(anywhere, command_lines)
