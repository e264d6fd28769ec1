"""
Storage systems that tests bring up on this machine.
"""
