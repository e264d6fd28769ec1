"""
Imported by Python itself at the start of each process that has this directory on its path: gives
the daemon and its workers a heartbeat (:mod:`heartbeat`).
"""

import os

import heartbeat

if heartbeat.VARIABLE in os.environ:
    heartbeat.attach()
