"""Pictures of how a split was judged: whether confidence can be trusted, and what is taken for what."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from tljax.io import storage
from tljax.metrics import classification
from tljax.streams import in_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 40  # classes up to which their names can be read
_COUNTED = 15  # and up to which counts can be read in the cells
_BLUE, _ORANGE = "#0072b2", "#e69f00"  # told apart with any color vision (Okabe and Ito 2008)


def reliability(path: epath.PathLike, logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."]) -> None:
    """Draws a PNG, the reliability diagram (1706.04599): accuracy and counts by confidence.

    Args:
        path: the file, anywhere that `epath` can write; its folder is made.
        logits: of a single_label or multi_label problem.
        labels: int [n], or 0 and 1 [n, classes].
    """
    from matplotlib.figure import Figure

    bins = classification.calibration(logits, labels)
    edges = np.linspace(0, 1, len(bins.count) + 1)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.bar(middles, np.nan_to_num(bins.accuracy), width, color=_BLUE, edgecolor="white", label="in each bin")
    upper.plot(bins.confidence, bins.accuracy, "o", color=_ORANGE, markeredgecolor="black", label="at mean confidence")
    upper.plot((0, 1), (0, 1), "--", color="black", label="calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy" if labels.ndim == 1 else "part that is there")
    upper.set_title(f"expected calibration error {bins.ece:.4f}")
    upper.legend(loc="upper left")
    lower.bar(middles, bins.count / bins.count.sum(), width, color=_BLUE, edgecolor="white")
    lower.set(xlabel="confidence", ylabel=f"part of {bins.count.sum():,}")
    _write(figure, path)


def confusion(
    path: epath.PathLike,
    logits: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
) -> None:
    """Draws a PNG, the confusion matrix of a single_label problem: which part of each class is taken for which.

    Names are left out above 40 classes, counts in the cells above 15.

    Args:
        path: the file, anywhere that `epath` can write; its folder is made.
        logits: of each class.
        labels: of each example.
        classes: their names.
    """
    _write(confusions(classification.confusion_counts(logits, labels), classes), path)


def confusions(counts: Num[np.ndarray, "classes classes"], classes: Sequence[str]) -> "Figure":
    """Returns the picture of a confusion matrix, in matplotlib's current style: it may lie on any background.

    Args:
        counts: as `classification.confusion_counts` gives them, or their mean over runs.
        classes: their names.
    """
    from matplotlib import rcParams
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.3 * min(len(classes), _NAMED)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    # The root shows a few per cent, which is what the cells beside the diagonal hold.
    shades = LinearSegmentedColormap.from_list("shades", [(_BLUE, 0.0), (_BLUE, 1.0)])
    image = axes.pcolormesh(parts, cmap=shades, norm=PowerNorm(0.5, 0, 1))
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="label", xticks=[], yticks=[])
    if len(classes) <= _NAMED:
        names = [name if len(name) <= 24 else name[:23] + "…" for name in map(in_one_line, classes)]
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(middles, names, rotation=90, parse_math=False)  # a name may have a $
        axes.set_yticks(middles, names, parse_math=False)
    if len(classes) <= _COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if parts[row, column] > 0.5 else rcParams["text.color"]
                text = f"{count:.1f}" if count % 1 and count < 10 else f"{count:.0f}"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_title(f"{np.trace(counts):,.0f} of {counts.sum():,.0f} right")
    if len(classes) > _COUNTED:
        figure.colorbar(image, label="part of the label's examples", shrink=0.8)
    return figure


def _write(figure: "Figure", path: Any) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(path, picture.getvalue())
