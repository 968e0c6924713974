"""How methods are built and tuned."""

import npmerge as nm
from experiments.compositional.methods import TENTHS, at_ends, first_alone, spread, ways


def test_in_subsets_the_first_hyper_parameter_alone_is_tuned():
    dare = first_alone(ways()["Dare"], {"scale": 0.2, "dropped": 0.75})
    assert dict(dare.grids) == {"scale": TENTHS} and dare.make(scale=0.4) == nm.Dare(density=0.25, scale=0.4)
    mats = first_alone(ways("gram")["MaTS"], {"start": 0.2, "iterations": 50})
    assert ways()["Wudi"].make(scale=0.4) == nm.Wudi(scale=0.4, iterations=300)  # not the exact minimum
    assert list(mats.grids) == ["start"] and mats.make(start=0.1) == nm.MaTS(
        "gram", 50, nm.TaskArithmetic(0.1), preconditioned=False
    )
    assert first_alone(ways()["Average"], {}).make() == nm.Average()


def test_values_at_an_end_of_their_grid_are_told():
    way = ways()["Dare"]
    assert at_ends({"scale": 1.0, "dropped": 0.5}, way) == ["scale"]
    assert at_ends({"scale": 0.0, "dropped": 0.9}, way) == ["scale", "dropped"]
    assert at_ends({"scale": 0.3, "dropped": 0.1}, way) == [] == at_ends({}, ways()["Average"])


def test_a_few_values_of_a_grid():
    assert spread(TENTHS, 6) == (0.1, 0.3, 0.5, 0.6, 0.8, 1.0) and spread((1, 2), 6) == (1, 2)
    assert spread(tuple(range(10, 101, 10)), 4) == (10, 40, 70, 100)  # without zero all are merges
