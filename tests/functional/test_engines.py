"""
The machines that tests are run in, when this one's kernel lacks something.
"""

from __future__ import annotations

import io
import os
import sys
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from tests.engines import uml


class MachineTests(SynchronousTestCase):
    def run_in_machine(self, *command: str, deadline: float = 60.0) -> tuple[int, str]:
        output = io.BytesIO()
        status = uml.run(list(command), output, deadline)
        return status, output.getvalue().decode()

    def test_command(self) -> None:
        """A command is root here; what it writes is passed on, and its exit status."""
        status, said = self.run_in_machine("sh", "-c", 'id -u; pwd; echo "it\'s" >&2; exit 7')
        self.assertEqual((status, said), (7, f"0\n{os.getcwd()}\nit's\n"))

    def test_files(self) -> None:
        """A command may change all files, and other users reach them; none here changes."""
        name = uuid4().hex
        with open(name, "w") as file:
            file.write("before")
        self.addCleanup(os.unlink, name)
        os.chmod(".", 0o700)
        self.addCleanup(os.chmod, ".", 0o755)
        change = f"echo after >{name} && touch {name}-too /etc/{name}"
        user = f"setpriv --reuid=1234 --clear-groups cat {os.path.abspath(name)}"
        self.assertEqual(self.run_in_machine("sh", "-c", f"{change} && {user}"), (0, "after\n"))
        with open(name) as file:
            self.assertEqual(file.read(), "before")
        self.assertFalse(os.path.exists(f"{name}-too"))
        self.assertFalse(os.path.exists(f"/etc/{name}"))

    def test_quota(self) -> None:
        """Its kernel has project quotas."""
        mount = "from tests.xfs import kernel; print(kernel.quota('state -p'))"
        status, said = self.run_in_machine(sys.executable, "-c", mount)
        self.assertEqual(status, 0, said)
        self.assertIn("Enforcement: ON", said)

    def test_too_long(self) -> None:
        """A machine that hangs is switched off, with what it has said last."""
        status, said = self.run_in_machine("sh", "-c", "echo before; sleep 1000", deadline=10)
        self.assertEqual(status, uml.TOO_LONG)
        self.assertTrue(said.startswith("before\n"), said)
        self.assertIn("the machine was switched off after 10 s; its console:", said)

    def test_not_started(self) -> None:
        """A machine whose kernel fails is told, with the kernel's words."""
        self.patch(uml, "INIT", "/missing/init")
        status, said = self.run_in_machine("true")
        self.assertEqual(status, uml.NOT_STARTED)
        self.assertIn("the machine has failed; its console:", said)
        self.assertIn("/missing/init", said)
