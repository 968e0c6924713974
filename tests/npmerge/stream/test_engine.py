"""The engine by itself: values, identical bytes however it runs, and interruptions at every write."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from npmerge.checkpoint import writer as writer_module
from npmerge.checkpoint.headers import read_header
from npmerge.checkpoint.partial import check_apart, partial_folder
from npmerge.recipe.plan import Plan, Rows, Source, Step
from npmerge.reports.progress import Silent
from npmerge.stream import blocks
from npmerge.stream.engine import Options
from npmerge.stream.outcomes import Outcome, summary
from npmerge.stream.writing import Destination, write_model
from tests.npmerge.stream.engines import SHAPES, expected, kernel_of, plan_of, write_models


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make(plan: Plan, out: Path, options: Options | None = None, *, resume: bool = False, **target: object) -> list[Outcome]:
    """What the command does, without a recipe."""
    with partial_folder(out, resume=resume, force=True) as folder:
        (folder / "model" / "npmerge.json").write_text("{}")
        goal = Destination(folder / "model", folder / "journal", keep=resume, **target)  # type: ignore[arg-type]
        return write_model(plan, kernel_of(), goal, options or Options(2), Silent())


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return found


def test_merged_tensors_are_rounded_once_and_copies_are_exact(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    outcomes = make(plan_of(paths), tmp_path / "out")
    got, oracle = tensors(tmp_path / "out"), expected(paths)
    assert got.keys() == oracle.keys()
    np.testing.assert_array_equal(got["ids"], oracle["ids"])
    for name in SHAPES:
        np.testing.assert_allclose(got[name].astype(np.float64), oracle[name], rtol=2**-8, atol=1e-5)
        assert got[name].shape == SHAPES[name]
    errors = {x.name: x.rounding for x in outcomes}
    assert max(errors.values()) > 0 and errors["ids"] == errors["empty"] == 0
    for name in set(SHAPES) - {"empty"}:
        worst = np.abs(got[name].astype(np.float64) - oracle[name]).max()
        np.testing.assert_allclose(errors[name], worst, atol=1e-5)


@pytest.mark.parametrize("options", [Options(1), Options(3), Options(7, 1), Options(2, 10**9)])
def test_threads_and_memory_change_no_byte(tmp_path: Path, options: Options) -> None:
    plan = plan_of(write_models(tmp_path))
    make(plan, tmp_path / "one", Options(2))
    make(plan, tmp_path / "other", options)
    assert written(tmp_path / "one") == written(tmp_path / "other")


def test_kernels_that_need_a_tensor_whole_give_the_same(tmp_path: Path) -> None:
    plan = plan_of(write_models(tmp_path))
    make(plan, tmp_path / "blocks")
    target = Destination(tmp_path / "whole", tmp_path / "journal")
    target.folder.mkdir()
    outcomes = write_model(plan, kernel_of(in_blocks=False), target, Options(2), Silent())
    assert written(tmp_path / "whole")["model.safetensors"] == written(tmp_path / "blocks")["model.safetensors"]
    assert max(x.rounding for x in outcomes) > 0


def test_a_tensor_that_has_to_be_whole_and_does_not_fit_is_refused_before_anything_is_merged(tmp_path: Path) -> None:
    target = Destination(tmp_path, tmp_path / "journal")
    plan = plan_of(write_models(tmp_path))
    with pytest.raises(
        ValueError, match=r"linear needs embed whole, which takes about 10\.2 kB: raise --memory-budget from 9 kB"
    ):
        write_model(plan, kernel_of(in_blocks=False), target, Options(2, 9000), Silent())


def test_shards_hold_as_much_as_asked_in_the_order_of_the_plan(tmp_path: Path) -> None:
    plan = plan_of(write_models(tmp_path))
    make(plan, tmp_path / "one")
    make(plan, tmp_path / "many", shard_bytes=800)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == [x.name for x in plan.steps]
    names = sorted(x.name for x in (tmp_path / "many").glob("*.safetensors"))
    assert names == [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)] == sorted(set(index["weight_map"].values()))
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in one.values())
    assert {k: x.tobytes() for k, x in one.items()} == {k: x.tobytes() for k, x in many.items()}


def test_headers_carry_texts_that_are_known_only_at_the_end(tmp_path: Path) -> None:
    plan = plan_of(write_models(tmp_path))
    make(plan, tmp_path / "out", metadata=lambda final: {"hash": "abc" if final else "000"})
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "hash": "abc"}
    with pytest.raises(ValueError, match="metadata"):
        make(plan, tmp_path / "out", metadata=lambda final: {"hash": "abc" * 9 if final else ""})


def test_entries_that_are_not_finite_are_found_and_told(tmp_path: Path) -> None:
    paths = write_models(tmp_path)
    file = paths[1] / "model.safetensors"
    place = read_header(file).tensors["layers.1.w"].offset
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(np.float32(np.nan).tobytes()[2:])
    outcomes = make(plan_of(paths), tmp_path / "out")
    assert {x.name: x.nonfinite for x in outcomes if x.nonfinite} == {"layers.1.w": 1}
    text = "\n".join(summary(plan_of(paths), outcomes, 1.0, 10**9))
    assert "6 tensors merged, 1 copied" in text and "NaN or infinite entries in layers.1.w (1)" in text


def test_rows_are_put_together_for_merges_and_for_copies(tmp_path: Path) -> None:
    plan = plan_of(write_models(tmp_path))
    table = np.stack([np.arange(40)[::-1], np.full(40, -1)], 1)
    source = Source(0, "embed", Rows((0, 1), ("embed", "embed"), table))
    steps = (Step("turned", (40, 8), "BF16", "copy", (source,)),)
    make(Plan(plan.models, steps), tmp_path / "out")
    got = tensors(tmp_path / "out")["turned"]
    assert got.tobytes() == plan.models[0].read("embed").reshape(40, 8)[::-1].tobytes()


class Killed(BaseException):
    """What the process is told by nobody."""


def failing(monkeypatch: pytest.MonkeyPatch, nth: int, error: Callable[[], BaseException]) -> list[int]:
    """Let the n-th write to a file fail, after half of its bytes."""
    calls, pwrite = [0], os.pwrite

    def write(file: int, data: memoryview, offset: int) -> int:
        calls[0] += 1
        if calls[0] == nth:
            pwrite(file, data[: len(data) // 2], offset)
            raise error()
        return pwrite(file, data, offset)

    monkeypatch.setattr(writer_module.os, "pwrite", write)
    return calls


def test_an_error_at_any_write_leaves_the_old_result_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(write_models(tmp_path))
    make(plan_of([tmp_path / "m1", tmp_path / "m0"]), tmp_path / "out")
    before = written(tmp_path / "out")
    calls = failing(monkeypatch, 0, Killed)
    make(plan, tmp_path / "other")
    count = calls[0]
    assert count > 40
    for nth in range(1, count + 1, 3):
        failing(monkeypatch, nth, lambda: OSError(28, "No space left on device"))
        with pytest.raises(ValueError, match=r"cannot write .*model\.safetensors: No space left on device"):
            make(plan, tmp_path / "out")
        assert written(tmp_path / "out") == before
        assert sorted(x.name for x in tmp_path.iterdir()) == ["m0", "m1", "other", "out"]


def test_a_merge_goes_on_after_a_kill_at_any_write_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npmerge.checkpoint.journal.FLUSH", 1)
    plan = plan_of(write_models(tmp_path))
    count = failing(monkeypatch, 0, Killed)
    make(plan, tmp_path / "whole")
    most = 0
    for nth in range(2, count[0] + 1, 5):
        failing(monkeypatch, nth, Killed)
        with pytest.raises(Killed):
            make(plan, tmp_path / f"out{nth}", resume=True)
        assert not (tmp_path / f"out{nth}").exists()
        monkeypatch.undo()
        monkeypatch.setattr(blocks, "BLOCK", 16)
        outcomes = make(plan, tmp_path / f"out{nth}", resume=True)
        assert written(tmp_path / f"out{nth}") == written(tmp_path / "whole")
        most = max(most, sum(x.kept for x in outcomes))
    assert most > len(SHAPES) - 2


def test_what_an_earlier_run_left_is_verified_and_forgotten_if_the_plan_is_another(tmp_path: Path) -> None:
    plan = plan_of(write_models(tmp_path))

    def interrupted() -> None:
        with pytest.raises(ValueError, match="no"), partial_folder(tmp_path / "out", resume=True) as folder:
            target = Destination(folder / "model", folder / "journal", keep=True)
            write_model(plan, kernel_of(), target, Options(2), Silent())
            raise ValueError("no")

    interrupted()
    file = tmp_path / ".out.partial" / "model" / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    outcomes = make(plan, tmp_path / "out", resume=True)
    assert [x.name for x in outcomes if not x.kept] == ["head"]
    make(plan, tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")
    (tmp_path / "out").rename(tmp_path / "first")
    interrupted()
    assert all(not x.kept for x in make(plan, tmp_path / "out", resume=True, shard_bytes=800))
    assert len(written(tmp_path / "out")) == 5  # three files, their index and the record
    (tmp_path / "out").rename(tmp_path / "second")
    interrupted()
    other = plan_of([tmp_path / "m1", tmp_path / "m0"])
    assert not any(x.kept for x in make(other, tmp_path / "out", resume=True))


def test_two_merges_never_write_to_one_place(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "out") as folder:
        (folder / "model" / "x").touch()
        with pytest.raises(ValueError, match="another merge is writing"), partial_folder(tmp_path / "out"):
            pass
        assert (folder / "model" / "x").exists()
    assert (tmp_path / "out" / "x").exists()


def test_only_results_of_merges_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    for force, message in ((False, "exists and is not empty"), (True, r"holds no npmerge\.json")):
        with pytest.raises(ValueError, match=message), partial_folder(out, force=force):
            pass
    (out / "npmerge.json").touch()
    for exchange in (True, False):
        if not exchange:
            monkeypatch.setattr("npmerge.checkpoint.partial._exchanged", lambda model, out: False)
        with partial_folder(out, force=True) as folder:
            (folder / "model" / "npmerge.json").write_text(str(exchange))
        assert written(out) == {"npmerge.json": str(exchange).encode()}
        assert [x.name for x in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"), partial_folder(tmp_path / "file", force=True):
        pass


def test_an_output_lies_apart_from_its_inputs(tmp_path: Path) -> None:
    check_apart(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    for out, message in (("a", "is an input"), ("a/out", "lie one in the other"), (".", "lie one in the other")):
        with pytest.raises(ValueError, match=message):
            check_apart(tmp_path / out, [tmp_path / "a"])
