"""
``twistd storage-proxy``, and the backends that come with it.
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
