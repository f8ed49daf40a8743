"""The steps of the library against plain references, each in seconds on a CPU."""

# SPDX-License-Identifier: BSD-3-Clause

import sys
from pathlib import Path

# asv imports this package alone, but the references are those of the scripts for the full size.
_SCRIPTS = str(Path(__file__).parents[2])
if _SCRIPTS not in sys.path:
    sys.path.append(_SCRIPTS)
