"""
``twistd storage-proxy``, the backends that come with it, and the agent of one of them.
"""

from twisted.application.service import ServiceMaker

from storageproxy.plugin import Backend

storage_proxy = ServiceMaker(
    "Backend.AI Storage Proxy",
    "storageproxy.tap",
    "Serve vfolders to managers and clients of Backend.AI.",
    "storage-proxy",
)

vfs = Backend("vfs", "backends.vfs.VFSBackend")
xfs = Backend("xfs", "backends.xfs.backend.XFSBackend")
cephfs = Backend("cephfs", "backends.cephfs.backend.CephFSBackend")
purestorage = Backend("purestorage", "backends.purestorage.backend.PureStorageBackend")

xfs_agent = ServiceMaker(
    "Backend.AI Storage Proxy: XFS agent",
    "backends.xfs.tap",
    "Give XFS projects to vfolders, and limit them, for a storage proxy without privilege.",
    "storage-proxy-xfs-agent",
)
