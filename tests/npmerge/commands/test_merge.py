"""`npmerge merge` as a command: folders, repetitions, interruptions and refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.writer import ModelWriter
from npmerge.cli import app, main
from npmerge.commands.planning import planned
from npmerge.recipe import Recipe
from npmerge.reports.numbers import duration, nats, parse_size, size
from npmerge.stream import blocks, outcomes
from tests.npmerge.stream.engines import SHAPES, expected, plan_of, write_models
from tests.npmerge.stream.test_engine import make

LINEAR = """\
merge_method: linear
models:
- model: m0
  parameters: {weight: 0.5}
- model: m1
  parameters: {weight: 1.5}
parameters: {normalize: false}
"""
TIES = """\
merge_method: ties
base_model: m0
models:
- model: m1
  parameters: {weight: 1.0, density: 0.5}
- model: m2
  parameters: {weight: 0.5, density: 0.3}
"""
TWO = f"""\
name: half
{LINEAR}---
merge_method: slerp
base_model: half
models:
- model: m0
parameters: {{t: 0.25}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with three models and recipes."""
    write_models(tmp_path, 3)
    for name, text in (("linear", LINEAR), ("ties", TIES), ("two", TWO)):
        (tmp_path / f"{name}.yml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["merge", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_document_is_planned_again_only_if_it_uses_a_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def counted(recipe: Recipe, *given: object, **more: object) -> object:
        names.append(recipe.name)
        return planned(recipe, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("npmerge.commands.documents.planned", counted)
    merge("two.yml", "out", "-q")
    assert names == ["half", None, None]


def test_a_linear_merge_and_what_is_told_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "WORTH_TELLING", 0.0)
    output = merge("linear.yml", "out", "-v", "--num-threads", "1")
    got, paths = load_file(folder / "out" / "model.safetensors"), [folder / "m0", folder / "m1"]
    stored = [load_file(path / "model.safetensors") for path in paths]
    for name in SHAPES:
        exact = 0.5 * stored[0][name].astype(np.float64) + 1.5 * stored[1][name].astype(np.float64)
        np.testing.assert_allclose(got[name].astype(np.float64), exact, rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(got["ids"], expected(paths)["ids"])
    for text in ("5 tensors merged, 2 copied", "rounding to the stored dtype", "slowest: ", "head  [40, 8]  BF16  linear of 2"):
        assert text in output, output
    assert sorted(x.name for x in folder.iterdir() if x.is_dir()) == ["m0", "m1", "m2", "out"]


def test_tensors_that_took_no_time_are_not_called_slow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "WORTH_TELLING", math.inf)
    assert "slowest" not in merge("linear.yml", "out")


@pytest.mark.parametrize("recipe", ["ties", "two"])
def test_threads_memory_and_files_of_the_inputs_change_no_tensor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 100)
    merge(f"{recipe}.yml", "one", "--num-threads", "1", "--quiet")
    merge(f"{recipe}.yml", "two", "--num-threads", "5", "--memory-budget", "1kB", "--quiet")
    assert files(folder / "one") == {**files(folder / "two"), "README.md": files(folder / "one")["README.md"]}
    model = open_model(folder / "m1")
    writer = ModelWriter(folder, list(model.entries.values()), {}, 300)
    for name in model.entries:
        writer.write(name, 0, model.read(name))
    writer.finish()
    (folder / "m1" / "model.safetensors").unlink()
    for path in [*folder.glob("model-*.safetensors"), folder / "model.safetensors.index.json"]:
        path.rename(folder / "m1" / path.name)
    merge(f"{recipe}.yml", "three", "--quiet")
    first, third = open_model(folder / "one"), open_model(folder / "three")
    assert {name: first.read(name).tobytes() for name in first.entries} == {
        name: third.read(name).tobytes() for name in third.entries
    }


@pytest.mark.parametrize("recipe", ["ties", "two"])
def test_the_number_of_devices_changes_no_byte(folder: Path, recipe: str) -> None:
    merge(f"{recipe}.yml", "eight")
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    command = [sys.executable, "-m", "npmerge", "merge", f"{recipe}.yml", "one", "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": flags})
    for name in ("model.safetensors", "npmerge.json"):
        assert (folder / "one" / name).read_bytes() == (folder / "eight" / name).read_bytes()


def test_what_is_not_included_is_the_base_bit_for_bit_which_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 100)
    (folder / "some.yml").write_text(TIES + "include: [layers.0]\n")
    assert "5 tensors copied from m0; read again, the copies have the same bytes" in merge("some.yml", "out")
    got, base, other = (load_file(folder / name / "model.safetensors") for name in ("out", "m0", "m1"))
    for name in base:
        same = got[name].tobytes() == base[name].tobytes()
        assert same == ("layers.0" not in name), name
    assert base["head"].tobytes() != other["head"].tobytes()

    def damaged(writer: ModelWriter, name: str, start: int, data: np.ndarray) -> None:
        spoiled = np.where(np.arange(len(data)) == 5, data ^ 1, data) if (name, start) == ("head", 200) else data
        write(writer, name, start, spoiled)

    write = ModelWriter.write
    monkeypatch.setattr(ModelWriter, "write", damaged)
    with pytest.raises(ValueError, match="head is not what was copied from head of m0"):
        CliRunner().invoke(app, ["merge", "some.yml", "again"], catch_exceptions=False)
    assert not (folder / "again").exists()


def test_a_merge_is_made_again_from_its_record_alone(folder: Path) -> None:
    merge("two.yml", "out", "--seed", "3", "--out-shard-size", "1kB")
    shutil.copy(folder / "out" / "npmerge.json", folder / "record.json")
    for path in folder.glob("*.yml"):
        path.unlink()
    (folder / "out").rename(folder / "first")
    assert "not as the first time" not in merge("record.json", "out")
    assert files(folder / "out") == files(folder / "first")
    header = next(iter(open_model(folder / "out").files.values()))
    record = json.loads(header.metadata["npmerge"])
    assert record["inputs"] == json.loads((folder / "record.json").read_text())["inputs"]
    assert record["seed"] == 3 and len(record["inputs"]) == 2 and "0" * 64 not in record["inputs"].values()
    for content in files(folder / "out").values():
        assert b".partial" not in content and str(folder).encode() not in content
    file = folder / "m1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    *_, changed, last = merge("record.json", "out", "--force").splitlines()
    assert changed.startswith("warning: not as the first time: output model-") or "input m1/model.safetensors" in changed
    assert last == "warning: out is not the merge that record.json records"


def test_the_card_counts_what_the_documents_name(folder: Path) -> None:
    merge("two.yml", "out", "-q")
    card = (folder / "out" / "README.md").read_text()
    assert card.startswith("---\ntags:") and "A merge of 2 models" in card and "| model | `m1` |" in card


def test_sizes_that_nobody_means_are_told(folder: Path) -> None:
    said = merge("linear.yml", "out", "--out-shard-size", "5000", "--memory-budget", "64")
    assert "warning: --out-shard-size 5000 is 5,000 bytes: for megabytes or gigabytes give 5000MB or 5000GB" in said
    assert "warning: --memory-budget 64 is 64 bytes: " in said
    assert "warning: --memory-budget is 64 B, and one block of this merge takes " in said
    said = merge("linear.yml", "again", "--out-shard-size", "5kB", "--memory-budget", "5GB")
    assert "warning: --" not in said


def test_flags_of_mergekit_are_told_what_stands_for_them(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["npmerge", "merge", "linear.yml", "out", "--cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "npmerge: --cuda of mergekit is --device gpu here\n"
    monkeypatch.setattr("sys.argv", ["npmerge", "merge", "linear.yml", "--out", "out"])
    with pytest.raises(SystemExit):
        main()
    told = "--out is not an option of merge: its second argument is the folder, npmerge merge RECIPE OUT"
    assert capsys.readouterr().err == f"npmerge: {told}\n"
    monkeypatch.setattr("sys.argv", ["npmerge", "linear.yml", "out"])
    with pytest.raises(SystemExit):
        main()
    told = "linear.yml seems to be a recipe, expected a command: npmerge merge linear.yml OUT, or npmerge plan linear.yml"
    assert capsys.readouterr().err == f"npmerge: {told}\n"


def test_a_folder_that_is_called_as_a_file_is_told_of(folder: Path) -> None:
    assert "warning: m.safetensors will be a folder, in which the merged model lies" in merge("linear.yml", "m.safetensors")
    assert (folder / "m.safetensors" / "model.safetensors").is_file()


def test_a_recipe_may_be_json_and_the_plan_of_a_record_has_its_seed(folder: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "m0", "parameters": {"weight": 1}}]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    merge("recipe.json", "out", "--seed", "7")
    plan = CliRunner().invoke(app, ["plan", "out/npmerge.json"], catch_exceptions=False)
    assert plan.output.startswith("the merge: linear, seed 7")
    plan = CliRunner().invoke(app, ["plan", "recipe.json"], catch_exceptions=False)
    assert plan.output.startswith("the merge: linear, seed 0")


def test_what_the_file_system_refuses_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["npmerge", "merge", "linear.yml", "x" * 300])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("npmerge: ") and "File name too long" in line


def test_an_earlier_result_is_replaced_only_if_asked(folder: Path) -> None:
    merge("linear.yml", "out", "--quiet")
    before = files(folder / "out")
    with pytest.raises(ValueError, match="exists and is not empty"):
        merge("ties.yml", "out")
    assert files(folder / "out") == before
    assert merge("ties.yml", "out", "--quiet", "--force") == ""
    assert files(folder / "out") != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear.yml", "m1"), "exists and is not empty"),
        (("linear.yml", "m1/out"), "the output m1/out and the input m1 lie one in the other"),
        (("none.yml", "out"), "none.yml: no such recipe"),
        (("linear.yml", "out", "--memory-budget", "much"), "--memory-budget must be a number of bytes such as 64MB"),
        (("linear.yml", "out", "--out-shard-size", "0"), "--out-shard-size must be a number of bytes"),
        (("linear.yml", "out", "--num-threads", "0"), "--num-threads must be 1 or more, got 0"),
        (("linear.yml", "out", "--seed", "-1"), "--seed must be from 0"),
        (("linear.yml", "out", "--device", "gqu"), "--device must be cpu, gpu, cuda or tpu"),
        (("linear.yml", "out", "--device", "tpu"), "--device tpu: JAX finds none here"),
        (("linear.yml", "out", "-q", "-v"), "--quiet and --verbose exclude each other"),
        (("m0/model.json", "out"), r"m0/model\.json"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        merge(*arguments)
    assert sorted(folder.rglob("*")) == before


def test_a_disk_with_too_little_room_is_told_with_both_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = os.statvfs_result((4096, 4096, 100, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(ValueError, match=r"the model needs \d,\d{3} more bytes, the disk has 0 left"):
        merge("linear.yml", "out")
    assert not (folder / "out").exists() and not (folder / ".out.partial").exists()


CHILD = """
import os, signal, sys
from pathlib import Path
from npmerge.checkpoint import journal, writer
from npmerge.stream import blocks, outcomes

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this process
nth, number, pwrite, calls = int(sys.argv[1]), int(sys.argv[2]), os.pwrite, []
def write(file, data, offset):
    calls.append(offset)
    if len(calls) == nth:
        pwrite(file, data[: len(data) // 2], offset)
        os.kill(os.getpid(), number)
    return pwrite(file, data, offset)

blocks.BLOCK, journal.FLUSH, writer.os.pwrite = 16, 1, write
"""
ENGINE = """
from tests.npmerge.stream.engines import plan_of
from tests.npmerge.stream.test_engine import make
make(plan_of([Path("m0"), Path("m1")]), Path("out"))
"""
COMMAND = """
from npmerge.cli import main
sys.argv = ["npmerge", "merge", "linear.yml", "out", "--num-threads", "1"]
main()
"""

SWALLOWED = """
from npmerge.commands.documents import Documents
make = Documents.make
def swallowed(self, *given):
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        pass
    return make(self, *given)
Documents.make = swallowed
"""


def child(code: str, nth: int, number: int) -> subprocess.CompletedProcess[str]:
    """A process that gets a signal in the middle of its n-th write."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD + code, str(nth), str(int(number))]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("nth", [2, 30, 50])
def test_a_killed_process_leaves_the_old_result_and_what_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)
    plan = plan_of([folder / "m0", folder / "m1"])
    make(plan, folder / "out")
    before = files(folder / "out")
    assert child(ENGINE, nth, signal.SIGKILL).returncode == -signal.SIGKILL
    assert files(folder / "out") == before and (folder / ".out.partial" / "journal").exists()
    shutil.rmtree(folder / "out")
    assert not all(x.kept for x in make(plan, folder / "out", resume=True))
    assert files(folder / "out") == before and not (folder / ".out.partial").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_stop_leaves_nothing(folder: Path, number: int) -> None:
    done = child(COMMAND, 9, number)
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(x.name for x in folder.iterdir() if x.is_dir()) == ["m0", "m1", "m2"]


def test_an_interruption_that_is_swallowed_on_the_way_is_one(folder: Path) -> None:
    done = child(SWALLOWED + COMMAND, 0, signal.SIGINT)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert sorted(x.name for x in folder.iterdir() if x.is_dir()) == ["m0", "m1", "m2"]


def test_sizes_and_times_in_words() -> None:
    texts = {"64MB": 64 * 10**6, "5B": 5 * 10**9, "5GB": 5 * 10**9, "1.5gib": 3 * 2**29, "7": 7, "2k": 2000}
    assert {text: parse_size("x", text) for text in texts} == texts
    assert [size(x) for x in (12, 999, 1234, 5.6e10, 10**15)] == ["12 B", "999 B", "1.23 kB", "56 GB", "1,000.0 TB"]
    assert [nats(x) for x in (2.5, 0.0123, 0.000312, 0)] == ["2.5000", "0.0123", "0.000312", "0.0000"]
    assert [duration(x) for x in (1.234, 99.9, 125, 7260)] == ["1.2 s", "99.9 s", "2 min 5 s", "2 h 1 min"]
