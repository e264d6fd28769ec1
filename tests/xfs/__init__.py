"""
XFS with project quotas, by a real kernel: ``python -m tests.xfs`` boots machines for these tests.
"""
