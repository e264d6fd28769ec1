"""
What one gets from Twisted by following its documentation: ``static.File`` for downloads, and a
resource that copies ``request.content`` to a file for uploads.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from twisted.internet import endpoints, reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import File


class Bodies(Resource):
    """
    ``PUT /bodies/NAME`` makes a file.

    :param directory: for the files.
    """

    isLeaf = True

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def render_PUT(self, request: Any) -> bytes:
        """Copy the body, which Twisted has put into a temporary file."""
        name = os.path.basename(request.postpath[-1].decode("ascii"))
        with open(os.path.join(self._directory, name), "wb") as target:
            shutil.copyfileobj(request.content, target, 1024 * 1024)
        request.setResponseCode(201)
        return b""


def main() -> None:
    """``plain.py PORT DIRECTORY-SERVED DIRECTORY-OF-BODIES``"""
    port, served, bodies = sys.argv[1:]
    root = File(served, defaultType="application/octet-stream")
    root.putChild(b"bodies", Bodies(bodies))
    endpoint = endpoints.TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1")
    endpoint.listen(Site(root))
    reactor.run()


if __name__ == "__main__":
    main()
