"""
The tests, for trial: ``python -m twisted.trial tests``.
"""

import re
import warnings
from pathlib import Path

# A warning of our own packages is an error. Trial collects warnings and gives them out again by
# file name, which is a module's name to the filter then.
_OURS = re.escape(str(Path(__file__).parents[1]))
warnings.filterwarnings("error", module=rf"({_OURS}/)?(storageproxy|backends)([./].*)?$")
