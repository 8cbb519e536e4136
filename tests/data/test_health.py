import json

import numpy as np
import pytest
from PIL import Image

from tests.data.made import base, task
from tljax import console
from tljax.data import diagnostics, splits


def examined(made, size=0, **slicings):
    slicings = slicings or {name: name for name in made.bases}
    report = diagnostics.examine(made, {name: splits.cut(made, slicing) for name, slicing in slicings.items()}, size)
    assert json.loads(json.dumps(report)) == report
    return report


def sound():
    return task({"train": base([0, 1] * 10), "test": base([1, 0] * 5, prefix="t")}, ("cat", "dog"))


def test_a_sound_data_set_has_no_warning():
    report = examined(sound())
    assert report["warnings"] == report["copies"] == report["skipped"] == []
    assert report["conflicts"] == {"count": 0, "pairs": []}
    assert report["splits"]["train"]["classes"] == {"cat": 10, "dog": 10}
    assert report["splits"]["train"]["imbalance"] == 1.0
    assert report["splits"]["train"]["slicing"] == "train"


def test_classes_are_counted_and_absent_ones_named():
    made = task(
        {"train": base([0] * 30 + [1] * 6 + [3] * 3), "test": base([0, 1, 2], prefix="t")}, ("ant", "bee", "cat", "dog")
    )
    report = examined(made)
    train = report["splits"]["train"]
    assert train["classes"] == {"ant": 30, "bee": 6, "cat": 0, "dog": 3}
    assert (train["smallest"], train["largest"], train["imbalance"]) == (0, 30, None)
    assert examined(made, train="train[:36]+train[36:]", test="train[:36]")["splits"]["test"]["imbalance"] is None
    assert report["warnings"] == [
        "classes without an example in train: 1 of 4 (cat)",
        "classes without an example in test: 1 of 4 (dog)",
    ]


# Contents by letter; a and b are planted twice or more.
TRAIN = ["a", "a", "b", "c", "d", "e", "a"]
TEST = ["f", "b", "g", "a", "b"]


def planted(train_labels=(0,) * 7, test_labels=(0,) * 5):
    return task({"train": base(train_labels, TRAIN), "test": base(test_labels, TEST, prefix="t")}, ("cat", "dog"))


def test_planted_copies_are_found_and_counted():
    report = examined(planted())
    assert report["copies"] == [
        {"splits": ["train", "train"], "count": 2, "pairs": [["0", "1"]]},  # two more a
        {"splits": ["train", "test"], "count": 3, "pairs": [["0", "t3"], ["2", "t1"]]},  # one a, two b
        {"splits": ["test", "test"], "count": 1, "pairs": [["t1", "t4"]]},  # one more b
    ]
    assert report["warnings"][0] == "examples of test that train has too, by content: 3 (0 = t3, 2 = t1)"
    # Only what a run uses is looked at.
    assert examined(planted(), train="train[3:6]", test="test")["copies"] == report["copies"][2:]


def test_equal_contents_with_other_labels_are_found():
    report = examined(planted(test_labels=(0, 0, 0, 0, 1)))
    assert report["conflicts"] == {"count": 1, "pairs": [[["train", "2", "cat"], ["test", "t4", "dog"]]]}
    assert "contents with two labels: 1 (2 in train: cat / t4 in test: dog)" in report["warnings"]
    within = examined(planted(train_labels=(0, 1, 0, 0, 0, 0, 0)))
    assert within["conflicts"]["pairs"] == [[["train", "0", "cat"], ["train", "1", "dog"]]]
    several = task({"train": base([[0], [0, 1]], ["x", "x"])}, ("cat", "dog"), "multi_label")
    assert examined(several)["conflicts"]["pairs"] == [[["train", "0", "cat"], ["train", "1", "cat|dog"]]]
    heights = task({"train": base([[1.0], [2.0]], ["x", "x"])}, ("height",), "regression")
    assert examined(heights)["conflicts"]["pairs"] == [[["train", "0", [1.0]], ["train", "1", [2.0]]]]


def test_at_most_five_pairs_are_named():
    contents = [f"{i % 8}" for i in range(16)]
    report = examined(task({"train": base([0] * 8 + [1] * 8, contents)}, ("cat", "dog")))
    assert report["copies"][0]["count"] == report["conflicts"]["count"] == 8
    assert len(report["copies"][0]["pairs"]) == len(report["conflicts"]["pairs"]) == 5


def test_sizes_of_pictures():
    bases = {"train": base([0, 1] * 3, height=[10, 20, 30, 20, 10, 50], width=[50, 20, 20, 20, 40, 10])}
    made = task(bases, "ab", kind="image")
    train = examined(made, size=20)["splits"]["train"]
    assert train["height"] == {"min": 10, "median": 20.0, "max": 50}
    assert train["width"] == {"min": 10, "median": 20.0, "max": 50}
    assert (train["sizes"], train["smaller"]) == (5, 3)
    assert examined(made, size=21)["splits"]["train"]["smaller"] == 6
    assert "smaller" not in examined(made)["splits"]["train"]


def test_lengths_of_texts_are_in_bytes():
    train = examined(task({"train": base([0, 1, 0], ["a", "four", "drei ä"])}, "ab"))["splits"]["train"]
    assert train["bytes"] == {"min": 1, "median": 4.0, "max": 7}
    assert "height" not in train


def test_targets_and_several_classes():
    made = task({"train": base([[1.5, 0.0], [-2.0, 0.0], [4.0, 0.0]])}, ("height", "weight"), "regression")
    report = examined(made)
    assert report["splits"]["train"]["targets"]["height"] == {"min": -2.0, "median": 1.5, "max": 4.0}
    assert report["warnings"] == ["weight is 0 throughout train"]
    made = task({"train": base([[0, 2], [], [0], [0]])}, ("ant", "bee", "cat"), "multi_label")
    report = examined(made)
    assert report["splits"]["train"]["classes"] == {"ant": 3, "bee": 0, "cat": 1}
    assert report["splits"]["train"]["classes_per_example"] == {"min": 0.0, "median": 1.0, "max": 2.0, "mean": 1.0}
    assert report["warnings"] == ["classes without an example in train: 1 of 3 (bee)"]


def test_skipped_examples_are_listed():
    skipped = ({"split": "train", "id": "9.png", "reason": "not a readable image"},)
    report = examined(task(sound().bases, ("cat", "dog"), skipped=skipped))
    assert report["skipped"] == list(skipped)
    assert report["warnings"] == ["examples skipped: 1 (the first is 9.png: not a readable image)"]


def test_a_report_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(console, "console", console._Console())
    diagnostics.show(examined(planted(test_labels=(0, 0, 0, 0, 1))))
    shown = capsys.readouterr().out
    assert "examples of train that are another's copy: 2 (0 = 1)" in shown
    assert "WARNING: examples of test that train has too, by content: 3 (0 = t3, 2 = t1)\n" in shown
    assert "WARNING: classes without an example in train: 1 of 2 (dog)" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(("│ cat", "│ dog"))] == [
        ["│", "cat", "│", "7", "│", "4", "│"],
        ["│", "dog", "│", "0", "│", "1", "│"],
    ]


def test_many_classes_are_shown_from_both_ends(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(console, "console", console._Console())
    labels = [label for label in range(50) for _ in range(label + 1)]
    report = examined(task({"train": base(labels)}, [f"class_{i}" for i in range(50)]))
    assert len(report["splits"]["train"]["classes"]) == 50
    diagnostics.show(report)
    shown = capsys.readouterr().out
    assert "… 30 more" in shown
    assert shown.count("class_") == 20
    assert "class_49" in shown and "class_0 " in shown and "class_25" not in shown


def colored(*colors, size=32):
    return [np.full((size, size, len(color)), color, np.uint8) for color in colors]


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def where(sheet: np.ndarray, color) -> np.ndarray:
    """Left, top, right and bottom of what has a color."""
    rows, columns = np.nonzero((sheet == color).all(axis=-1))
    assert len(rows), f"{color} is not on the sheet"
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


def test_a_sheet_has_a_row_for_each_class(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    diagnostics.contact_sheet({"cat": colored(RED, GREEN), "a $dog$": colored(BLUE, YELLOW)}, path, "augmented")
    sheet = np.asarray(Image.open(path).convert("RGB"))
    red, green, blue, yellow = (where(sheet, color) for color in (RED, GREEN, BLUE, YELLOW))
    for left, right in ((red, green), (blue, yellow)):
        assert left[2] < right[0]  # beside each other
        assert left[1] == right[1]
    for above, below in ((red, blue), (green, yellow)):
        assert above[3] < below[1]
        assert above[0] == below[0]
    assert min(red[2:] - red[:2]) > 60  # pixels: large enough to see
    for row in (red, blue):
        assert (sheet[row[1] : row[3], : row[0]] < 100).any()  # the name, dark on white
    assert (sheet[: red[1]] < 100).any()  # the title
    between = sheet[red[3] + 2 : blue[1] - 1]
    assert between.min() == 255


def test_a_sheet_without_names_has_none(tmp_path):
    diagnostics.contact_sheet({"": colored(RED)}, tmp_path / "sheet.png", "")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (sheet[:, : where(sheet, RED)[0] - 2] == 255).all()


@pytest.mark.parametrize("color", [(120,), (120, 30, 200), (120, 30, 200, 255)])
def test_a_sheet_takes_grey_and_alpha(tmp_path, color):
    diagnostics.contact_sheet({"cat": colored(color)}, tmp_path / "sheet.png", "one")
    where(np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")), (color * 3)[:3])


def test_a_sheet_of_many_classes_says_that_it_is_cut(tmp_path):
    colors = [(10 * i + 5, 0, 250 - 10 * i) for i in range(14)]
    pictures = {f"class {i}": colored(color) for i, color in enumerate(colors)}
    diagnostics.contact_sheet(pictures, tmp_path / "sheet.png", "augmented")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    found = [bool((sheet == color).all(axis=-1).any()) for color in colors]
    assert found == [True] * 12 + [False] * 2
