"""
XFS: each vfolder is a project with a hard limit of its own, which the kernel enforces.
"""
