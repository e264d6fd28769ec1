"""
The two HTTP faces of the daemon.
"""
