"""
A Ceph cluster on this machine, with a file system in it: a monitor, a manager, storage daemons, a
metadata server, and any number of mounts by ceph-fuse. It takes root, and no systemd.

All it consists of lies in one directory. What a process has started dies with it, unless it is to
last: ``python -m tests.engines.ceph up --directory DIR`` starts a cluster that does, and ``down``
ends it. Either may be done again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.functional.daemon import free_port, select_pause

#: Seconds for any step; a busy machine takes 10 for all of them.
DEADLINE = 120.0
#: The file system, and bytes that its storage daemons have room for, together.
FILE_SYSTEM = "cephfs"
ROOM = 4 << 30

MON, MGR, MDS = "mon.a", "mgr.x", "mds.a"

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
keyring = {directory}/keyring
run_dir = {directory}
admin_socket = {directory}/$name.$pid.asok
log_file = {directory}/log/$name.log
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[mon]
mon_data = {directory}/mon
mon_cluster_log_file = {directory}/log/cluster.log
# It is alone, so there is nobody to wait for.
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_tick_interval = 1
[mgr]
mgr_data = {directory}/mgr
mgr_stats_period = 1
mgr_initial_modules =
[mds]
mds_data = {directory}/mds
mds_cache_memory_limit = 268435456
mds_beacon_interval = 1
[osd]
osd_data = {directory}/osd$id
osd_objectstore = {store}
osd_memory_target = 939524096
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_class_update_on_start = false
osd_class_load_list = *
osd_class_default_list = *
bluestore_block_size = {room}
memstore_device_bytes = {room}
[client]
client_mount_timeout = 30
# The other way begins with a mount(8) of its own, which keeps the connection to the kernel open
# when ceph-fuse is killed at that moment: who looks at the mount then waits for ever.
client_try_dentry_invalidate = true
"""


class Cluster:
    """
    A cluster in a directory.

    :param directory: what it all lies in. It is made, and is gone when the cluster has stopped.
    :param store: ``memstore``, which is quickest and forgets all when it dies, or ``bluestore``.
    :param osds: the number of storage daemons. Of several, the first has all metadata, and the
        others have the files, so that some of these can be made to hang alone.
    :param lasting: whether it outlives the process (the thread) that starts it.
    """

    def __init__(
        self, directory: Path, store: str = "memstore", osds: int = 1, lasting: bool = False
    ) -> None:
        self.directory = directory.resolve()
        self.configuration = self.directory / "ceph.conf"
        self.store = store
        self.osds = [f"osd.{number}" for number in range(osds)]
        self.lasting = lasting
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    # The cluster

    def start(self) -> None:
        """Start it, and return when the file system can be mounted; at once if it can already."""
        if all(self.pid(name) for name in (MON, MGR, *self.osds, MDS)):
            return
        self.stop()
        for name in ("mon", "mgr", "mds", "log", "pids", "mounts"):
            (self.directory / name).mkdir(parents=True)
        self._make_monitor()
        self._start(MON, "ceph-mon")
        self._start(MGR, "ceph-mgr")
        for name in self.osds:
            self._make_osd(name)
        self._start(MDS, "ceph-mds")
        for pool, osds in (("metadata", self.osds[:1]), ("data", self.osds[1:])):
            rule = []
            if len(self.osds) > 1:
                self.command("osd", "crush", "set-device-class", pool, *osds)
                self.command(
                    "osd", "crush", "rule", "create-replicated", pool, "default", "osd", pool
                )
                rule = ["replicated", pool]
            self.command("osd", "pool", "create", pool, "4", "4", *rule)
        self.command("fs", "new", FILE_SYSTEM, "metadata", "data")
        self.wait_until_active()

    def stop(self) -> None:
        """End all processes and mounts, and remove the directory."""
        if not self.configuration.exists():
            return
        for name in self._names():
            self.kill(name)
        for path in self._mounted():
            subprocess.run(["umount", "--lazy", path], check=True)
        if left := self._mounted():
            raise RuntimeError(f"still mounted: {left}")
        shutil.rmtree(self.directory)

    def command(self, *arguments: str) -> Any:
        """
        Ask the monitors.

        :param arguments: those of ceph(8).
        :return: the decoded JSON of its answer; None when there is none.
        """
        program = ["ceph", "-c", str(self.configuration), "--connect-timeout", f"{DEADLINE:g}"]
        said = self._run(*program, "--format", "json", *arguments)
        return json.loads(said) if said.strip() else None

    def wait_until_active(self) -> None:
        """Return when the metadata server serves, which takes a while after it has hung."""
        self._wait_for(lambda: b'"up:active"' in self._run(*self._ceph, "mds", "stat"), "the MDS")

    @property
    def _ceph(self) -> tuple[str, ...]:
        return ("ceph", "-c", str(self.configuration), "--format", "json")

    # Its processes

    def pid(self, name: str) -> int | None:
        """
        The process of a daemon or a mount.

        :param name: ``mon.a``, ``mgr.x``, ``mds.a``, ``osd.0``, or ``fuse.`` and a mount's name.
        :return: None when it is not running.
        """
        try:
            pid = int((self.directory / "pids" / name).read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if os.fsencode(self.configuration) in command else None

    def signal(self, name: str, number: int) -> None:
        """Send a signal, such as SIGSTOP, to a daemon or a mount."""
        pid = self.pid(name)
        if pid is None:
            raise ProcessLookupError(f"{name} is not running")
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        """End a daemon or a mount as a crash would. What was mounted stays so, and is dead."""
        if self.pid(name) is not None:
            self.signal(name, signal.SIGKILL)
        self._wait_until_gone(name)

    def start_osd(self, name: str) -> None:
        """Start a storage daemon, again: one that keeps its data."""
        number = name.partition(".")[2]
        self._start(name, "ceph-osd", "--keyring", f"{self.directory}/osd{number}/keyring")

    def start_mds(self) -> None:
        """Start the metadata server again; it waits for clients that are gone, for 45 seconds."""
        self.command("mds", "fail", "a")
        self._start(MDS, "ceph-mds")
        self.wait_until_active()

    # Mounts

    def authorize(self, client: str, capabilities: str, path: str = "/") -> None:
        """
        Make a key.

        :param client: a name for it.
        :param capabilities: such as ``rw``; ``rwp`` for one that may set quotas, too.
        :param path: where in the file system it holds.
        """
        key = self._run(*self._ceph[:3], "fs", "authorize", FILE_SYSTEM, f"client.{client}", path,
                        capabilities)  # fmt: skip
        self._keyring(client).write_bytes(key)

    def mount(self, name: str, client: str = "admin", root: str = "/") -> Path:
        """
        Mount the file system; once, however often it is asked for.

        :param name: tells mounts apart.
        :param client: whose key it is done with.
        :param root: the directory of the file system that is mounted.
        :return: where.
        """
        path = self.directory / "mounts" / name
        process = f"fuse.{name}"
        if self.pid(process) is None:
            if str(path) in self._mounted():
                self.unmount(name, lazily=True)
            path.mkdir(exist_ok=True)
            keyring = ("--keyring", str(self._keyring(client)))
            self._start(process, "ceph-fuse", *keyring, "-n", f"client.{client}", "-r", root, path)
        self._wait_for(lambda: str(path) in self._mounted(), process)
        return path

    def unmount(self, name: str, lazily: bool = False) -> None:
        """
        Unmount.

        :param lazily: without waiting for anything: what was not written is lost, and the client
            is killed.
        """
        path = self.directory / "mounts" / name
        if lazily:
            self.kill(f"fuse.{name}")
        if str(path) in self._mounted():
            self._run("umount", *(["--lazy"] if lazily else []), str(path))
        self._wait_until_gone(f"fuse.{name}")

    def requests(self, name: str) -> list[str]:
        """The storage daemons that a mount waits for: one for each request under way."""
        socket = next(self.directory.glob(f"client.*.{self.pid(f'fuse.{name}')}.asok"))
        said = json.loads(self._run("ceph", "daemon", str(socket), "objecter_requests"))
        return [f"osd.{request['osd']}" for request in said["ops"]]

    def evict(self, name: str) -> None:
        """
        Have the metadata server give a mount up, as it does by itself when one that others wait for
        has been silent for a minute. It is of no use any more, even if it lives.
        """
        path = str(self.directory / "mounts" / name)
        for client in self.command("tell", MDS, "client", "ls"):
            if client["client_metadata"].get("mount_point") == path:
                self.command("tell", MDS, "client", "evict", f"id={client['id']}")

    # How it is done

    def _make_monitor(self) -> None:
        fsid, port = str(uuid4()), free_port()
        self.configuration.write_text(
            _CONFIGURATION.format(
                directory=self.directory, fsid=fsid, port=port, store=self.store, room=ROOM
            )
        )
        keyring, map = str(self.directory / "keyring"), str(self.directory / "monmap")
        mds = ("mon", "allow profile mds", "osd", "allow *", "mds", "allow", "mgr", "allow *")
        mgr = ("mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
        admin = ("mon", "allow *", "osd", "allow *", "mds", "allow *", "mgr", "allow *")
        self._run("ceph-authtool", "--create-keyring", keyring)
        for name, capabilities in (
            ("mon.", ("mon", "allow *")),
            ("client.admin", admin),
            (MGR, mgr),
            (MDS, mds),
        ):
            pairs = zip(capabilities[::2], capabilities[1::2], strict=True)
            given = [word for pair in pairs for word in ("--cap", *pair)]
            self._run("ceph-authtool", keyring, "--gen-key", "--name", name, *given)
        address = f"[v2:127.0.0.1:{port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, map)
        program = ("ceph-mon", "-c", str(self.configuration), "-i", "a")
        self._run(*program, "--mkfs", "--monmap", map, "--keyring", keyring)

    def _make_osd(self, name: str) -> None:
        number, uuid = name.partition(".")[2], str(uuid4())
        directory = self.directory / f"osd{number}"
        directory.mkdir()
        key = self._run("ceph-authtool", "--gen-print-key").decode().strip()
        secret = self.directory / "secret"
        secret.write_text(json.dumps({"cephx_secret": key}))
        self.command("osd", "new", uuid, number, "-i", str(secret))
        (directory / "keyring").write_text(f"[{name}]\nkey = {key}\n")
        program = ("ceph-osd", "-c", str(self.configuration), "-i", number)
        keyring = ("--keyring", str(directory / "keyring"))
        self._run(*program, "--mkfs", "--osd-uuid", uuid, *keyring)
        self.start_osd(name)

    def _start(self, name: str, program: str, *arguments: str | Path) -> None:
        """Start a process of the cluster."""
        dying = [] if self.lasting else ["setpriv", "--pdeathsig", "KILL"]
        identity = [] if program == "ceph-fuse" else ["-i", name.partition(".")[2]]
        with (self.directory / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                [*dying, program, "-c", str(self.configuration), *identity, "-f", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[name] = child
        (self.directory / "pids" / name).write_text(str(child.pid))

    def _run(self, *command: str) -> bytes:
        """
        Run a command to its end.

        :return: what it has written.
        :raises RuntimeError: with what it says is wrong.
        """
        done = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def _wait_for(self, condition: Any, name: str) -> None:
        """Return when something holds that a process of ours brings about."""
        end = time.monotonic() + DEADLINE
        while not condition():
            child = self._children.get(name)
            if time.monotonic() > end or (child is not None and child.poll() is not None):
                log = self.directory / "log" / f"{name}.out"
                raise RuntimeError(f"{name} did not start: {log.read_text() if child else ''}")
            select_pause()

    def _wait_until_gone(self, name: str) -> None:
        """Return when a process has ended."""
        child = self._children.pop(name, None)
        if child is not None:
            child.wait(DEADLINE)
        self._wait_for(lambda: self.pid(name) is None, name)
        (self.directory / "pids" / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """What has been started; mounts come first."""
        return sorted(path.name for path in (self.directory / "pids").glob("*"))

    def _keyring(self, client: str) -> Path:
        return self.directory / ("keyring" if client == "admin" else f"client.{client}.keyring")

    def _mounted(self) -> list[str]:
        """Mount points below the directory."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.directory}/")]


def main() -> None:
    """Start or stop a cluster that lasts; say where its configuration and its mount are."""
    parser = argparse.ArgumentParser(prog="python -m tests.engines.ceph")
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--store", choices=("memstore", "bluestore"), default="memstore")
    parser.add_argument("--osds", type=int, default=1)
    options = parser.parse_args()
    cluster = Cluster(options.directory, options.store, options.osds, lasting=True)
    if options.action == "down":
        cluster.stop()
        return
    cluster.start()
    mount = cluster.mount("admin")
    print(f"CEPH_CONF={cluster.configuration}\n{mount}")


if __name__ == "__main__":
    main()
