"""What the table at a run's end says of small numbers."""

from tljax.checkpoints.workdir import _differences
from tljax.training.console_output import _percent, _short


def test_little_is_not_shown_as_nothing():
    assert [_short(value) for value in (24.3701, 0.7, 0.00106, 0.0)] == ["24.37", "0.70", "0.0011", "0"]
    assert [_percent(share) for share in (0.049, 0.00003)] == ["4.9%", "< 0.1%"]


def test_what_follows_from_a_key_is_not_said_beside_it():
    old = {"config": {"steps": 100, "seed": 0}, "resolved": {"steps": 100, "data": "a"}}
    new = {"config": {"steps": 50, "seed": 0}, "resolved": {"steps": 50, "data": "b"}}
    assert _differences(old, new) == ["config.steps: 100 there, 50 now", "resolved.data: 'a' there, 'b' now"]
