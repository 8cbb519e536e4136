import numpy as np
import pytest
from PIL import Image

from tljax.evals import plots
from tljax.metrics import classification


def _split(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    return (rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]).astype(np.float32), labels


def test_classes_are_counted_by_what_they_are_taken_for():
    logits = np.eye(3)[[0, 0, 1, 2, 2]]
    assert classification.confusion_counts(logits, np.array([0, 1, 1, 0, 0])).tolist() == [
        [1, 0, 2],
        [1, 1, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("classes", [2, 5, 30, 60])
def test_pictures_are_drawn_whole(tmp_path, classes):
    logits, labels = _split(300, classes)
    names = [f"${k} a name that is much too long to be shown" for k in range(classes)]
    plots.confusion(tmp_path / "new" / "confusion.png", logits, labels, names)
    plots.reliability(str(tmp_path / "new" / "reliability.png"), logits, labels)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["confusion.png", "reliability.png"]
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as picture:
            assert all(500 < side < 3000 for side in picture.size)
            assert np.asarray(picture.convert("L")).std() > 10


def test_what_is_drawn_is_what_was_counted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure))
    logits, labels = _split(200, 3)
    plots.confusion(tmp_path, logits, labels, ["a", "b", "c"])
    counts = classification.confusion_counts(logits, labels)
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(axes.collections[0].get_array(), counts / counts.sum(axis=1, keepdims=True))
    assert [text.get_text() for text in axes.texts] == [str(count) for count in counts.ravel() if count]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
    plots.reliability(tmp_path, logits, labels)
    bins = classification.calibration(logits, labels)
    upper, lower = drawn[1].axes
    np.testing.assert_allclose([bar.get_height() for bar in upper.patches], np.nan_to_num(bins.accuracy))
    np.testing.assert_allclose([bar.get_height() for bar in lower.patches], bins.count / 200)
    assert upper.get_title() == f"expected calibration error {bins.ece:.4f}"


def test_several_labels_have_a_reliability_too(tmp_path):
    logits, labels = _split(200, 4)
    plots.reliability(tmp_path / "picture.png", logits, np.eye(4)[labels])
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_many_classes_have_no_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure))
    for classes in (16, 41):
        plots.confusion(tmp_path, *_split(200, classes), [str(k) for k in range(classes)])
    assert len(drawn[0].axes[0].get_xticks()) == 16 and not drawn[0].axes[0].texts
    assert len(drawn[1].axes[0].get_xticks()) == 0
