"""The parts that users write stand in `examples/`, which is on Python's path as a config's own folder would be."""

import sys

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
