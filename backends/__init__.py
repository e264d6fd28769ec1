"""
One adapter for each storage system. They know :mod:`storageproxy`, which knows none of them.
"""
