"""Collectives are counted right in programs that are known, and the benchmarks of learning run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from typer.testing import CliRunner

from experiments.benchmarks import learning, scaling
from experiments.benchmarks.chips import Chip
from experiments.benchmarks.collectives import Collective, collectives, totals
from experiments.benchmarks.steps import fine_tuning, merging, more_bytes, plain, random_batch
from npmerge.models import Gpt2, ResNetCifar

TINY = ResNetCifar(blocks=1, width=2, side=8)


def compiled(function, *arrays, out):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    given = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))) for s, spec in arrays]
    return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec(*out))).lower(*given).compile().as_text()


def test_a_product_over_a_divided_axis_is_summed():
    text = compiled(jnp.matmul, ((16, 64), (None, "x")), ((64, 24), ("x", None)), out=())
    assert collectives(text, 8) == [Collective("all-reduce", 4 * 16 * 24, 8)]
    assert collectives(text, 8)[0].sent == 2 * 4 * 16 * 24 * 7 / 8


def test_what_is_divided_is_gathered():
    text = compiled(jnp.sin, ((16, 24), ("x", None)), out=())
    assert [x.sent for x in collectives(text, 8)] == [4 * 16 * 24 * 7 / 8]
    assert totals(collectives(text, 8)) == {"all-gather": 4 * 16 * 24}


def test_every_kind_is_read():
    text = """
      %a = (f32[2,3]{1,0}, bf16[5]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
      %b = f32[4]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
      %c = s8[10] collective-permute(%x), source_target_pairs={{0,1}}
      %d = f32[] all-reduce-start(%x), replica_groups={}
      %e = f32[9] add(%all-reduce.1, %z)
    """
    kinds = ("all-reduce", 34, 2), ("reduce-scatter", 64, 4), ("collective-permute", 10, 8), ("all-reduce", 4, 8)
    assert collectives(text, 8) == [Collective(*x) for x in kinds]
    assert [x.sent for x in collectives(text, 8)] == [34, 48, 10, 7]
    with pytest.raises(ValueError, match="all-gather-start is not read"):
        collectives("%a = (f32[1], f32[8]) all-gather-start(%x), dimensions={0}", 8)


def test_sums_in_groups_take_the_slow_links_for_a_part():
    chip = Chip(1, 1, 1, fast=8, slow=2, group=4)
    assert chip.sending(Collective("all-gather", 64, 8), 4) == 64 * 3 / 4 / 8
    assert chip.sending(Collective("all-reduce", 64, 8), 8) == 2 * (64 * 3 / 4 / 8 + 64 / 4 / 2 / 2)


def test_batches_are_of_images_or_of_tokens():
    (images, labels), (tokens, following) = random_batch(TINY, 2), random_batch(Gpt2(5, 8, 1, 1, 8, 4), 3)
    assert images.shape == (2, 8, 8, 3) and labels.shape == (2,)
    np.testing.assert_array_equal(tokens[:, 1:], following[:, :-1])
    assert following.shape == (3, 4) and following.min() >= 0 and following.max() < 5


@pytest.mark.parametrize("models", [1, 2])
def test_networks_are_gathered_before_they_run(models):
    """Heads that divide among the devices tempt XLA most: of one network it sent 64 a step."""
    config = Gpt2(vocabulary=64, width=32, layers=2, heads=8, hidden=128, length=32)
    step = scaling.compiled_step(scaling.Setting("", config, 8), "features", models)
    size = 4 * step.parameters
    assert sum(step.collectives.values()) < 3 * size


def test_steps_learn():
    batch = random_batch(TINY, 2)
    for step in (merging(TINY, 2, batch), merging(TINY, 3, batch), fine_tuning(TINY, batch), plain(TINY, batch)):
        before = [np.asarray(x) for x in jax.tree.leaves(step.state[0])]
        after = jax.tree.leaves(step()[0])
        assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
    assert more_bytes(2, 10) == 4 * 10 * 6 and more_bytes(4, 10) == 4 * 10 * 31


@pytest.mark.parametrize("benchmark", [learning, scaling], ids=["learning", "scaling"])
def test_a_quick_run(benchmark, tmp_path):
    app = typer.Typer()
    app.command()(benchmark.main)
    result = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text, content = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "rows.json").read_text())
    assert str(tmp_path) not in text
    if benchmark is learning:
        assert [(r["models"], r["seconds"] > 0) for r in content["rows"]] == [(2, True), (3, True)]
        return
    by_examples, by_features = content
    size = 4 * by_examples["parameters"]
    assert set(by_examples["collectives"]) == {"all-reduce"}
    assert size <= by_examples["collectives"]["all-reduce"] < 1.01 * size  # the network's gradient, the loss and its weight
    assert 0.8 * size < by_features["collectives"]["all-gather"] < 1.05 * size  # statistics, too
