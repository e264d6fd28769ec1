"""
A FlashBlade that is none: its REST API over TLS, and the commands of its RapidFile Toolkit.

``docs/flashblade-simulator.md`` says what is known from where, and what is not.
"""
