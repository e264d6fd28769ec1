"""
A backend that only tests have: the commands of the RapidFile Toolkit, without an array behind them.
"""

from storageproxy.plugin import Backend

rapidfile = Backend("rapidfile", "tests.functional.rapidfile.RapidFileBackend")
