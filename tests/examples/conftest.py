"""The example service is a folder of scripts that import each other; tests do it the same way."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

sys.path.insert(0, str(EXAMPLES / "service"))
