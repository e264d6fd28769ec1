"""
Provides the package's version. Kept by incremental: ``python -m incremental.update``.
"""

from incremental import Version

__version__ = Version("storageproxy", 26, 11, 0)
__all__ = ["__version__"]
