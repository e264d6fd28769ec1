"""
What is tested on a real CephFS (:mod:`tests.engines.ceph`): ``python -m tests.ceph``.
"""
