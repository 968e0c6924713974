"""The figure of how experts are used."""

import numpy as np
import pytest

import npmerge as nm

USAGE = nm.RoutingUsage(
    blocks=("0", "1"),
    depths=np.array([[0, 1], [1, 0]]),
    weights=np.array([[[0.4, 0.3], [0.2, 0.1]], [[0.1, 0.7], [0.15, 0.05]]]),
    entropy=np.array([1.28, 0.9]),
    tokens=np.array([8, 8]),
)


def test_a_line_for_each_expert_by_depth():
    left, right = nm.routing_figure(USAGE, ["code", "prose_$1$"]).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert lines == {
        "code": [0.4, 0.1],
        r"prose_\$1\$": [0.3, 0.7],
        "code, neighbour 1": [0.2, 0.15],
        r"prose_\$1\$, neighbour 1": [0.1, 0.05],
    }
    colours, styles = [x.get_color() for x in left.lines], [x.get_linestyle() for x in left.lines]
    assert colours == ["C0", "C1", "C0", "C1"] and styles == ["-", "-", "--", "--"]
    assert list(right.lines[0].get_ydata()) == [1.28, 0.9]
    np.testing.assert_allclose(right.lines[1].get_ydata(), np.log(4))
    assert [text.get_text() for text in right.get_xticklabels()] == ["0", "1"]


def test_refused():
    with pytest.raises(ValueError, match=r"^routing_figure takes a name for each of 2 models, got 1$"):
        nm.routing_figure(USAGE, ["code"])
    with pytest.raises(ValueError, match=r"^routing_figure takes \(usage, names\), got \(dict, list\)$"):
        nm.routing_figure({}, ["code"])
