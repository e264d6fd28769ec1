"""
The vendor's own clients, unmodified, at the simulator of a FlashBlade. They are in the extra
``flashblade``, apart from the others as one of them is large.
"""
