"""
Backend.AI Storage Proxy: vfolders on big storage, for managers and for clients.
"""

from storageproxy._version import __version__ as _version

#: The release, as a string of numbers with dots.
__version__: str = _version.public()
