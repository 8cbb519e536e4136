"""The masks of a run: which leaves each of its phases trains, and which it leaves as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict

from tljax.config.schema import Experiment
from tljax.tuning.multipliers import Tree
from tljax.tuning.phases import Phase
from tljax.tuning.strategies import Layout


def partition(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves where `mask` is true (or not 0) and the others.

    Each half has `optax.MaskedNode`, which has no leaves, in place of what is in the other.
    """
    selected = jax.tree.map(lambda select, leaf: leaf if select else optax.MaskedNode(), mask, tree)
    others = jax.tree.map(lambda select, leaf: optax.MaskedNode() if select else leaf, mask, tree)
    return selected, others


def combine(tree: Tree, others: Tree) -> Tree:
    """Puts the halves of `partition` together: leaves that `tree` lacks come from `others`, which may have all."""
    return jax.tree.map(lambda leaf, other: other if _is_masked(leaf) else leaf, tree, others, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


@dataclass(frozen=True, eq=False)
class Masks:
    """What the phases of a run train and what they freeze.

    Attributes:
        experiment: the run's.
        layout: the parameters' names and groups.
        phases: the run's.
        batch_stats: paths of the stored statistics of BatchNorm, as `backbone/GROUP/…/mean`.
    """

    experiment: Experiment
    layout: Layout
    phases: tuple[Phase, ...]
    batch_stats: tuple[str, ...]

    @property
    def multipliers(self) -> Tree:
        """Returns the highest multiplier that each leaf has in any phase; 0 where it never trains."""
        return jax.tree.map(lambda *values: max(values), *(phase.multipliers for phase in self.phases))

    def frozen_prefix(self, phase: Phase) -> int:
        """Returns how many leading groups of the backbone compute the same in every step of a phase."""
        if self.batch_stats:
            # An average's statistics still approach what an earlier phase has left.
            averages = self.experiment.optim.average and phase.start
            if averages or self.experiment.batch_norm.frozen_groups != "frozen":
                return 0
        groups = self.layout.groups[:-1]
        return next((i for i, group in enumerate(groups) if group not in phase.frozen), len(groups))

    def frozen_mask(self, phase: Phase, state: Tree) -> Tree:
        """Returns a bool a leaf of the train state: whether the steps of a phase leave it unchanged.

        Args:
            phase: one of the run's, or made of one.
            state: a train state in that phase, or its shapes.
        """
        names = self.frozen_in([phase])

        def is_frozen(path: Any, _: Any) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return name in names or name.startswith("anchor/")

        return jax.tree_util.tree_map_with_path(is_frozen, state)

    def frozen_names(self, step: int = 0) -> frozenset[str]:
        """Returns the leaves of the train state (as `flatten_state` names them) that `step` steps have left unchanged.

        A leaf that is among them after 0 steps is not trained by the first phase, and may be by a later one.
        """
        names = self.frozen_in([phase for phase in self.phases if phase.start < max(step, 1)])
        if self.experiment.optim.average:  # whose steps towards a value that is frozen are 0
            names |= {f"average/{name}" for name in names if name.startswith("batch_stats/")}
        if self.experiment.regularize.l2_sp or self.experiment.regularize.l2_sp_new:
            names |= {f"anchor/{path}" for path, value in flatten_dict(self.multipliers, sep="/").items() if value}
        return frozenset(names)

    def frozen_in(self, phases: Sequence[Phase]) -> set[str]:
        """Returns the names of the parameters and stored statistics that none of these phases changes."""
        multipliers = [flatten_dict(phase.multipliers, sep="/") for phase in phases]
        params = {f"params/{path}" for path in self.layout.group_of if not any(tree[path] for tree in multipliers)}
        modes = self.experiment.batch_norm

        def is_frozen(group: str) -> bool:
            used = (modes.frozen_groups if group in phase.frozen else modes.trained_groups for phase in phases)
            return "update_stats" not in used

        return params | {f"batch_stats/{path}" for path in self.batch_stats if is_frozen(path.split("/")[1])}
