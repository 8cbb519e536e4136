"""The notebooks run from their first cell to their last, each in a process and a folder of its own."""

import pytest

from tests.docs.blocks import NOTEBOOKS, run

# As users have it: with plain kernels the ViT-S of these pages takes minutes.
pytestmark = [pytest.mark.optimized, pytest.mark.slow]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs(page, tmp_path):
    run(page, tmp_path)
