"""Kernels with mergekit's conventions against what mergekit 0.1.5 made of the recorded tensors, laid out as on disk."""

import pathlib

import numpy as np
import pytest

from tests.fixtures.record_mergekit import CASES, OPPOSITE, SHAPES, TINY, scaled
from tests.npmerge.stream.held import Held, run, step_of

with np.load(pathlib.Path(__file__).parents[2] / "fixtures" / "mergekit_0_1_5.npz") as file:
    FOUND = {name: file[name] for name in file.files}

MODELS = {model: {name: FOUND[f"{model}/{name}"] for name in SHAPES} for model in ("base", "a", "b", "c")}
OTHERS = {
    "opposite": {"base": scaled(0, MODELS["base"]), "a": MODELS["a"], "b": scaled(-2, MODELS["a"])},
    "tiny": {model: scaled(1e-7, tensors) for model, tensors in MODELS.items()},
}
DRAWN = {"dare_linear_half", "della_half"}
UNDEFINED = {"linear_cancel", "slerp_beyond"}  # refused before anything is read
OPEN = {"ties", "breadcrumbs"}  # which of equal magnitudes are kept
BY_ROUNDING = {("nuslerp_opposite", "matrix"), ("nuslerp_opposite", "vector")}  # whether a cosine is -1


@pytest.mark.parametrize("case", sorted({*CASES, *OPPOSITE, *TINY} - DRAWN - UNDEFINED))
def test_the_same(case):
    kind = case.split("_")[-1]
    method, base, names, parameters = (CASES | OPPOSITE | TINY)[case]
    models = OTHERS.get(kind, MODELS)
    factor = 1e7 if kind == "tiny" else 1.0
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
    for name in SHAPES:
        if (case.split("_")[0] in OPEN and name == "equal") or (case, name) in BY_ROUNDING:
            continue
        sources = [models[model][name] for model in names]
        origin = models[base][name] if base == "base" else None
        held = Held(step_of(method, sources, origin, **given), sources, origin, 7)
        found = run(held, mergekit_semantics=True).values.reshape(SHAPES[name])
        tolerance = 2e-5 if case in ("karcher", "sce_tiny", "nearswap_tiny", "model_stock_tiny") else 3e-6
        np.testing.assert_allclose(
            factor * found, factor * FOUND[f"{case}/{name}"], rtol=tolerance, atol=tolerance, err_msg=name
        )
