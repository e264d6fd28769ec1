"""
CephFS: limits and sizes are extended attributes of directories, which the cluster keeps.
"""
