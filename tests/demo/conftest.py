"""Makes the modules of cookbook/demo_model importable."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "cookbook" / "demo_model"))
