"""Makes `small_cache` importable, for the tests and for the scripts that they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
