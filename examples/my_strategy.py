"""A strategy of your own: a function of the network's layout that returns a multiplier for each parameter.

--config.tuning.strategy=my_strategy:every_nth --config.tuning.stride=3
"""

from tljax import Layout


def every_nth(layout: Layout, *, stride: int) -> dict[str, float]:
    """Trains every `stride`-th block and the head."""
    return layout.by_group(lambda group: group == "head" or layout.index(group) % stride == 0)
