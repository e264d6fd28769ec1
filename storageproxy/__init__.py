"""
Backend.AI Storage Proxy: vfolders on big storage, for managers (RPC) and clients (tus, ranged HTTP).
"""

from storageproxy._version import __version__ as _version

#: The release, as a string of numbers with dots.
__version__: str = _version.public()
