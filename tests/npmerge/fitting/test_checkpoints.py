"""A fit that is ended and called again ends where one that nobody ended does, bit for bit."""

import functools
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from npmerge import Distillation, Entropy, UserObjective, fit, stack_models, weight_space
from npmerge.batches import shuffled
from npmerge.fitting.checkpoints import Checkpoints, described
from tests.npmerge.test_sharding import ADAM, EVEN, LOSS, NP, STACK, WAYS, examples, learned, network


def same(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found.theta), jax.tree.leaves(expected.theta), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(found.history, expected.history, strict=True):
        assert np.array_equal(a, b)
    assert found.status == expected.status


def run(steps: int, batches, **options):
    options = {"held_out": [examples(9, 11)], "every": 5, **options}
    return fit(NP.init(STACK), LOSS, STACK, batches, ADAM, steps=steps, **options)


def pull(step: int, loss: float) -> None:
    if step == 10:
        raise RuntimeError("a wire was pulled")


class Loader:
    """An iterator with a position, as those of grain have it: of bytes."""

    def __init__(self):
        self.at, self.read = 0, []

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        self.read.append(self.at)
        return EVEN[self.at % 3]

    def get_state(self) -> bytes:
        return str(self.at).encode()

    def set_state(self, state: bytes) -> None:
        self.at = int(state)


DATA = {
    "a list": lambda: EVEN,
    "a generator": lambda: itertools.cycle(EVEN),
    "a loader": Loader,
    "shuffled": lambda: shuffled(*examples(5, 20), 8, seed=0),
}


@pytest.mark.parametrize("data", DATA)
def test_a_fit_goes_on_from_its_checkpoints(tmp_path: Path, data: str) -> None:
    batches, saving = DATA[data], {"checkpoints": Checkpoints(tmp_path / "fit", steps=4)}
    expected = run(20, batches())
    with pytest.raises(RuntimeError, match="a wire was pulled"):
        run(20, batches(), progress=pull, **saving)
    assert sorted(int(x.name) for x in (tmp_path / "fit").iterdir()) == [4, 8]
    same(run(20, batches(), **saving), expected)
    same(run(20, batches(), **saving), expected)  # it is over


def test_batches_that_were_used_are_not_read_again_where_there_is_a_position(tmp_path: Path) -> None:
    saving = Checkpoints(tmp_path / "fit", steps=4)
    run(4, Loader(), checkpoints=saving)
    second = Loader()
    run(6, second, checkpoints=saving)
    assert second.read == [5, 6]


@pytest.mark.parametrize("way", ["jit x8", "jit x8, features", "pmap x8"])
def test_divided_fits_go_on_in_every_layout(tmp_path: Path, way: str) -> None:
    saving = {"checkpoints": Checkpoints(tmp_path / "fit", steps=10)}
    expected = run(20, EVEN, **WAYS[way])
    run(10, EVEN, **WAYS[way], **saving)
    same(run(20, EVEN, **WAYS[way], **saving), expected)


def test_a_fit_that_was_stopped_early_or_diverged_stays_so(tmp_path: Path) -> None:
    options = {"patience": 1, "held_out": [examples(9, 11)], "every": 1, "checkpoints": Checkpoints(tmp_path / "early", 50)}
    rate = optax.sgd(-1.0)
    first = fit(NP.init(STACK), LOSS, STACK, EVEN, rate, steps=20, **options)
    assert first.status == "stopped early"
    same(fit(NP.init(STACK), LOSS, STACK, EVEN, rate, steps=20, **options), first)


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.conftest  # how it compiles
from tests.npmerge.fitting.test_checkpoints import DATA, Checkpoints, run

def progress(step, loss):
    if step == 15:
        os.kill(os.getpid(), signal.SIGKILL)

run(20, DATA["shuffled"](), every=5, progress=progress, checkpoints=Checkpoints(Path(sys.argv[1]), steps=4))
"""


def test_a_fit_that_is_killed_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "fit")], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert sorted(int(x.name) for x in (tmp_path / "fit").iterdir() if x.name.isdigit()) == [8, 12]
    found = run(20, DATA["shuffled"](), checkpoints=Checkpoints(tmp_path / "fit", steps=4))
    same(found, run(20, DATA["shuffled"]()))


def test_losses_are_known_again_by_what_they_are_made_of() -> None:
    """In another process too: by names, not by addresses."""
    assert described(LOSS) == described(weight_space(NP, LOSS.apply, LOSS.objective))
    assert " at 0x" not in described(LOSS)
    others = [Distillation(), Distillation(temperature=2.0), Distillation(teacher=1), UserObjective(np.mean)]
    losses = [
        functools.partial(weight_space(NP, LOSS.apply, x), key=k) for x in others for k in (0, np.arange(2), np.arange(3))
    ]
    assert len({described(x) for x in losses}) == len(losses)


def test_a_fit_by_the_clock(tmp_path: Path) -> None:
    run(20, EVEN, checkpoints=Checkpoints(tmp_path / "fit", steps=None, minutes=1e-9))
    assert sorted(int(x.name) for x in (tmp_path / "fit").iterdir()) == [15, 20]


def test_checkpoints_of_another_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saving = Checkpoints("fit", steps=4)
    run(4, EVEN, checkpoints=saving)
    options = {"held_out": [examples(9, 11)], "checkpoints": saving}
    with pytest.raises(ValueError, match=r"^fit holds a fit of another theta or other models: name another folder"):
        fit(jax.tree.map(lambda x: x + 1, NP.init(STACK)), LOSS, STACK, EVEN, ADAM, steps=8, **options)
    with pytest.raises(ValueError, match="holds a fit of another theta or other models: name another folder"):
        fit(NP.init(STACK), LOSS, stack_models([network(0), network(2)]), EVEN, ADAM, steps=8, **options)
    with pytest.raises(ValueError, match="holds a fit of other held-out batches"):
        run(8, EVEN, held_out=[examples(8, 11)], checkpoints=saving)
    with pytest.raises(ValueError, match="holds a fit of another loss and other training batches"):
        fit(NP.init(STACK), weight_space(NP, LOSS.apply, Entropy()), STACK, EVEN[1:], ADAM, steps=8, **options)
    with pytest.raises(ValueError, match=r"holds a fit of another kind of optimizer: name another folder$"):
        fit(NP.init(STACK), LOSS, STACK, EVEN, optax.sgd(0.1, momentum=0.9), steps=8, **options)
    with pytest.raises(ValueError, match="the checkpoints have 4 steps, 3 were asked for"):
        run(3, EVEN, checkpoints=str(tmp_path / "fit"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write"):
        run(3, EVEN, checkpoints=tmp_path / "file")
    for wrong, message in (({"steps": 0}, "steps between checkpoints"), ({"minutes": 0}, "more than 0")):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, **wrong)
    with pytest.raises(ValueError, match="steps or minutes"):
        Checkpoints(tmp_path, steps=None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cannot write .*file.fit: Not a directory$"):
        run(4, EVEN, checkpoints=tmp_path / "file" / "fit")


def test_nothing_is_written_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    learned(EVEN)
    assert not list(tmp_path.iterdir()) and network(0)
