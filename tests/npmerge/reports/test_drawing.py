"""Axes that figures share."""

import pytest

from npmerge.reports.drawing import new_figure, plain_logarithm


@pytest.mark.parametrize(
    ("limits", "labels"),
    [
        ((0.16, 0.9), ["0.2", "0.3", "0.4", "0.5", "0.7"]),  # no power of ten in it
        ((8, 71), ["10", "15", "20", "30", "40", "50", "70"]),
        ((0.5, 40), ["0.5", "1", "2", "5", "10", "20"]),
    ],
)
def test_a_logarithmic_axis_says_where_it_is(limits, labels):
    _, (ax,) = new_figure(1)
    ax.set_ylim(*limits)
    plain_logarithm(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == labels and ax.get_yscale() == "log"
    assert ax.get_ylim() == pytest.approx(limits) and not ax.yaxis.get_minorticklocs().size
