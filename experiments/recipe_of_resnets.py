"""Three strangers' ResNet-20 merged by one recipe: `python -m experiments.recipe_of_resnets FOLDER`, then what it prints.

Writes the networks, examples and `recipe.yml` into the folder. With `--control` it fine-tunes the aligned average instead, on
the same batches for as many steps, from the files that are there.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import optax

import npmerge as nm
from alignment import WeightMatching
from experiments.data import CIFAR, IMAGENET, load, scaled
from experiments.published_resnets import load_test_set
from npmerge.checkpoint.names import load_named
from npmerge.evaluate import Metrics
from npmerge.learning.known_networks import Known
from npmerge.models import abstract, example

NAMES = ("akamaster", "zheng", "bognev")
TRAIN, HELD_OUT, TEST, STEPS, BATCH = 11_500, 500, 2_000, 150, 128
RECIPE = f"""\
merge_method: linear
models:
{"".join(f"  - {{model: resnet20_{name}.th, parameters: {{weight: 1}}}}" + chr(10) for name in NAMES)}\
align: {{method: weight_matching}}
learn:
  data: train.npz
  held_out: held_out.npz
  granularity: per_parameter
  optimizer: {{name: adam, arguments: {{learning_rate: 0.1}}}}
  steps: {STEPS}
  every: 25
  batch_size: {BATCH}
"""


def write(folder: Path) -> None:
    """Networks, examples and the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copy(CIFAR.parent / "resnet_cifar10" / f"resnet20_{name}.th", folder)
    count = TRAIN + HELD_OUT
    images, labels = scaled(load("cifar10", CIFAR).train.take(np.arange(count)), IMAGENET)
    np.savez(folder / "train.npz", inputs=images[:TRAIN], labels=labels[:TRAIN])
    np.savez(folder / "held_out.npz", inputs=images[TRAIN:], labels=labels[TRAIN:])
    test = load_test_set(count=TEST)
    np.savez(folder / "test.npz", inputs=test.inputs.astype(np.float32), labels=test.labels)
    (folder / "recipe.yml").write_text(RECIPE)


def control(folder: Path, rate: float) -> Metrics:
    """Accuracy and loss of the aligned average, fine-tuned as the recipe learns."""
    config, _ = load_named(folder / "resnet20_akamaster.th")
    network = abstract(config)
    models = [load_named(folder / f"resnet20_{name}.th")[1] for name in NAMES]
    graph = nm.trace(network.apply, models[0], example(config))
    start = nm.Average()(nm.stack_models(nm.align(WeightMatching(), graph, models)))
    train, held_out, test = (dict(np.load(folder / f"{name}.npz")) for name in ("train", "held_out", "test"))
    loss = nm.fine_tuning(Known(config).forward, nm.CrossEntropy())
    batches = nm.shuffled(train["inputs"], train["labels"], BATCH, seed=0)
    judged = nm.in_order(held_out["inputs"], held_out["labels"], BATCH)[:-1]
    tuned = nm.fit(start, loss, None, batches, optax.adam(rate), steps=STEPS, every=25, held_out=judged).theta
    tuned = nm.reset_statistics(network.train_apply, tuned, nm.in_order(train["inputs"], train["labels"], BATCH)[:64])
    return nm.evaluate(network.apply, tuned, nm.in_order(test["inputs"], test["labels"], BATCH))


def main() -> None:
    """Write the files, or run the control."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--control", type=float, metavar="RATE", help="fine-tune the aligned average at this learning rate")
    given = parser.parse_args()
    if given.control is not None:
        found = control(given.folder, given.control)
        print(f"fine-tuned aligned average at {given.control:g}: accuracy {found.accuracy:.4f}, loss {found.loss:.4f}")  # noqa: T201
        return
    write(given.folder)
    models = " ".join(f"resnet20_{name}.th" for name in NAMES)
    print(f"cd {given.folder} && npmerge merge recipe.yml merged && npmerge evaluate merged {models} --data test.npz")  # noqa: T201


if __name__ == "__main__":
    main()
