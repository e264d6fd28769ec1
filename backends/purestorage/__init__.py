"""
Volumes on a PureStorage FlashBlade: an NFS export, with the array's REST API beside it.
"""
