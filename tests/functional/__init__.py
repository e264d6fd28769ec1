"""
Tests of the running daemon, over TCP, with real clients.
"""
