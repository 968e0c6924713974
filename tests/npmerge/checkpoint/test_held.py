"""Models in memory are read as those on disk are, and told apart by their values."""

import ml_dtypes
import numpy as np

from npmerge.checkpoint.held import HeldModel
from npmerge.stream.writing import _identity


def test_pieces_of_tensors_are_read():
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    model = HeldModel("held", {"x": x, "y": x.astype(ml_dtypes.bfloat16)}, {"layers": 1})
    assert [(e.name, e.dtype, e.shape, e.nbytes) for e in model.entries.values()] == [
        ("x", "F32", (3, 2), 24),
        ("y", "BF16", (3, 2), 12),
    ]
    np.testing.assert_array_equal(model.read("x", 1, 3), x.reshape(-1)[1:4])
    np.testing.assert_array_equal(model.read("y").astype(np.float32), x.reshape(-1))
    assert (model.name, model.config) == ("held", {"layers": 1})


def test_what_was_written_of_other_values_is_not_taken_for_these():
    models = [HeldModel("held", {"x": np.full(3, v, np.float32)}, {}) for v in (0, 0, 1)]
    assert _identity(models[0]) == _identity(models[1]) != _identity(models[2])
