"""The `npmerge` command."""

import atexit
import gc
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from npmerge.commands import options
from npmerge.commands.mergekit_flags import check_flags
from npmerge.commands.methods import FUSIONS, METHODS, PLEAS, method_of
from npmerge.commands.signals import interrupted_between_imports
from npmerge.version import __version__

app = typer.Typer(
    help="Differentiable model merging in JAX: several trained networks in, one out, every merge a start for a learned one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; bad input, and what the file system refuses, ends in one line and exit status 2."""
    gc.set_threshold(50_000)  # looking for cycles during imports would take a tenth of the time in which a merge starts
    atexit.register(gc.freeze)  # and one last look through everything would delay the end
    interrupted_between_imports()
    try:
        check_flags(sys.argv[1:])
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"npmerge: {error}", err=True)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"npmerge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    split: Annotated[
        str, typer.Option(help="How the digits are divided between the two networks: same, 80-20 or disjoint.")
    ] = "80-20",
    seed: Annotated[int, typer.Option(help="The seed of a single run, or the first of several.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds to run; the report gives mean and deviation.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for report.md, summary.json and curves.png.")] = Path("npmerge-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Small networks, few steps: to see that it runs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that already has files.")] = False,
) -> None:
    """Train two networks on scikit-learn's digits, trace, align, merge, learn, and report what each step is worth."""
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    if seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {seeds}")
    if quick:  # half of a quick run would be spent in the compiler's optimiser; JAX reads this when it first computes
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    from npmerge.demo.command import run_demo  # not needed for --help

    flags = (" --quick" if quick else "") + (" --force" if force else "")
    command = f"npmerge demo --split {split} --seed {seed} --seeds {seeds} --out {shlex.quote(str(out))}{flags}"
    with _interruptible():
        run_demo(split, range(seed, seed + seeds), out=out, quick=quick, force=force, command=command)


@app.command()
def align(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more checkpoints of one architecture, saved by npmerge or in PyTorch's names; the first is the "
            "reference."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(METHODS)}; {PLEAS} merges them into one network of the size of --budget, "
            f"{' and '.join(FUSIONS)} into one of --width. With data, activation-matching is the one to begin with."
        ),
    ] = "weight-matching",
    budget: Annotated[
        float | None, typer.Option(help=f"For {PLEAS}: operations of the merged network, from 1 times those of one to all.")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help=f"For {' and '.join(FUSIONS)}: units of every node, as a multiple of the first network's (1)."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with `inputs`, for methods on activations, and `labels`, for barriers; images are (examples, "
            "height, width, channels), normalised as in training."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of what is random in the method and the checks.")] = 0,
    points: Annotated[
        int | None, typer.Option(help=f"Networks on the path between two, ends included (11); sizes that {PLEAS} tries (5).")
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Let maps change the function (procrustes and cca, outside their groups).")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the aligned checkpoints, report.md, summary.json and figures.")] = Path(
        "npmerge-align"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that already has files.")] = False,
) -> None:
    """Bring networks into the units of the first, and report what that is worth."""
    method = method_of(method)
    name, where = shlex.join(map(str, files)), f"--out {shlex.quote(str(out))}{' --force' if force else ''}"
    options = f"--method {method}{f' --data {shlex.quote(str(data))}' if data else ''} --seed {seed}"
    given: dict[str, Any] = {"files": tuple(files), "data": data, "seed": seed, "out": out, "force": force}
    if budget is not None and method != PLEAS:
        raise ValueError(f"--budget is for --method {PLEAS}, got --method {method}")
    if width is not None and method not in FUSIONS:
        raise ValueError(f"--width is for --method {' and '.join(FUSIONS)}, got --method {method}")
    with _interruptible():
        if method == PLEAS:
            from npmerge.commands import pleas  # not needed for --help

            if budget is None:
                raise ValueError(f"{PLEAS} needs --budget, from 1 to the number of networks: got none")
            if approximate:
                raise ValueError(f"{PLEAS} has no approximate form: leave out --approximate")
            sizes = 5 if points is None else points
            command = f"npmerge align {name} {options} --budget {budget:g} --points {sizes} {where}"
            pleas.run_pleas(pleas.Request(**given, budget=budget, points=sizes, command=command))
            return
        if method in FUSIONS:
            from npmerge.commands import fusion  # not needed for --help

            if points is not None or approximate:
                raise ValueError(f"{method} makes one network: it has no --points and no --approximate form")
            times = 1 if width is None else width
            command = f"npmerge align {name} {options} --width {times:g} {where}"
            fusion.run_fusion(fusion.Request(**given, method=method, width=times, command=command))
            return
        from npmerge.commands.align import Request, run_align  # not needed for --help

        between = 11 if points is None else points
        command = f"npmerge align {name} {options} --points {between}{' --approximate' if approximate else ''} {where}"
        run_align(Request(tuple(files), method, approximate, data, seed, between, out, force, command))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method: what it does, what it asks, its hyper-parameters.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: an object with a key for each method.")] = False,
) -> None:
    """Say what each merge method asks (base, data, labels, number of models, ...), its hyper-parameters and published grids."""
    from npmerge.commands.catalogue_page import methods_page  # not needed for --help

    typer.echo(methods_page(name, as_json=as_json))


@app.command()
def merge(
    recipe: options.Recipe,
    out: Annotated[Path, typer.Argument(help="Folder of the merged model.")],
    device: Annotated[str, typer.Option(help="Where to compute: cpu, gpu (or cuda), tpu, or such as cuda:1.")] = "cpu",
    out_shard_size: Annotated[
        str | None, typer.Option(help="The most that one file takes: 500MB, 5GB or, as in mergekit, 5B (5GB).")
    ] = None,
    seed: options.Seed = None,
    num_threads: options.Threads = None,
    memory_budget: options.Budget = None,
    mergekit_semantics: options.MergekitSemantics = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with what an interrupted merge left, and leave it if this one is interrupted."),
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="One of several processes of a SLURM or Open MPI job or a TPU pod: they learn, the first writes.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the result of an earlier merge.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge checkpoints by a recipe, tensor by tensor in constant memory, into a folder that appears whole or not at all."""
    from npmerge.commands.merge import Request, run_merge  # not needed for --help

    options.check_seed(seed)
    given = options.engine_options(num_threads, memory_budget)
    asked: dict[str, Any] = {"resume": resume, "force": force, "quiet": quiet, "verbose": verbose, "distributed": distributed}
    with _interruptible(kept=resume):
        run_merge(Request(recipe, out, device, out_shard_size, seed, given, mergekit_semantics, **asked))


@app.command()
def plan(
    recipe: options.Recipe,
    seed: options.Seed = None,
    num_threads: options.Threads = None,
    memory_budget: options.Budget = None,
    mergekit_semantics: options.MergekitSemantics = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say what a recipe would do: each tensor's method, inputs and numbers; bytes, memory and time.

    Reads headers only. For a recipe with learn it reads the examples too, compiles a step of learning and times it.
    """
    from npmerge.commands.plan import Request, plan_json, plan_page  # not needed for --help

    options.check_seed(seed)
    request = Request(recipe, seed, mergekit_semantics, verbose, options.engine_options(num_threads, memory_budget))
    typer.echo(plan_json(request) if as_json else plan_page(request))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint of any format that is read: a file, a folder or an index.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read the tensors too: moments, NaN and infinities, tensors that are the same.")
    ] = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say what a checkpoint holds: tensors, shapes, dtypes, layers, configuration, and the record of its merge."""
    from npmerge.commands.inspect import inspect_page, inspected  # not needed for --help

    with _interruptible():
        content = inspected(path, values=values)
    typer.echo(json.dumps(content, indent=1) if as_json else inspect_page(content, verbose=verbose))


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(help="Two models or more; the others are compared with the first.")],
    base: Annotated[
        Path | None, typer.Option(help="The model that they were trained from: for task vectors and their conflicts of sign.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.md, summary.json and heatmap.png.")] = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say how far models are from the first: cosine, distance, norm, conflicts of sign, NaN; by tensor and by layer."""
    from npmerge.commands.compare import Request, run_compare  # not needed for --help

    with _interruptible():
        typer.echo(run_compare(Request(tuple(paths), base, out, force, verbose, as_json)))


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Checkpoints, or base+adapter, as recipes name them.")],
    data: Annotated[
        Path, typer.Option(help="An .npz file with `inputs` and `labels`, a folder with a folder of images per class, or text.")
    ],
    architecture: Annotated[
        str | None, typer.Option(help="Such as ResNetCifar, or module:function; by default what the tensors tell.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples that are computed together.")] = 128,
    as_json: options.Json = False,
) -> None:
    """Say how good models are on examples: accuracy and cross entropy."""
    from npmerge.commands.evaluate import Request, run_evaluate  # not needed for --help

    with _interruptible():
        typer.echo(run_evaluate(Request(tuple(models), data, architecture, batch_size, as_json)))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="safetensors, PyTorch, npz, Flax msgpack, Orbax, Keras, GGUF or ONNX: a file, or the folder of one.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A name in .safetensors or .npz, or a folder: safetensors with an index, or Orbax."),
    ],
    target: Annotated[
        str | None, typer.Option("--format", help="Of a folder: safetensors, or orbax (which a name in .orbax means too).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of floating-point tensors: float64, float32, float16 or bfloat16; others stay.")
    ] = None,
    out_shard_size: Annotated[
        str | None, typer.Option(help="The most that one file of a folder takes, such as 500MB (5GB).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output of an earlier conversion.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write a checkpoint in another format, bit for bit, without PyTorch; the output appears whole or not at all."""
    from npmerge.commands.convert import Request, run_convert  # not needed for --help

    with _interruptible():
        run_convert(Request(source, out, target, dtype, out_shard_size, force, quiet))


@app.command("merge-lora")
def merge_lora(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of adapters of one base, as PEFT writes them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the merged adapter.")],
    weight: Annotated[list[float] | None, typer.Option("--weight", "-w", help="One for each adapter, in order (1).")] = None,
    rank: Annotated[int | None, typer.Option(help="Cut to this rank; otherwise exact, and ranks add up.")] = None,
    force: options.Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Merge LoRA adapters of one base into one adapter: exact, or cut to a rank with the error of each tensor."""
    from npmerge.commands.adapters import Request, merge_adapters  # not needed for --help

    with _interruptible():
        page = merge_adapters(adapters, weight or [], Request(out, rank, None, force, quiet))
    if not quiet:
        typer.echo(page)


@app.command("extract-lora")
def extract_lora(
    model: Annotated[str, typer.Argument(help="The model that was trained.")],
    base: Annotated[str, typer.Argument(help="The model that it was trained from.")],
    out: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    rank: Annotated[int, typer.Option(help="The most that a weight gets.")],
    max_error: Annotated[
        float | None, typer.Option(help="Relative error of a weight up to which its rank may be smaller.")
    ] = None,
    force: options.Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write the difference of two models as a LoRA adapter that PEFT reads, with the error of each tensor."""
    from npmerge.commands.adapters import Request, extract_adapter  # not needed for --help

    with _interruptible():
        page = extract_adapter(model, base, Request(out, rank, max_error, force, quiet))
    if not quiet:
        typer.echo(page)


@contextmanager
def _interruptible(*, kept: bool = False) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        left = "--resume goes on with what is there" if kept else "nothing was written"
        typer.echo(f"npmerge: interrupted, {left}", err=True)
        raise typer.Exit(130) from None


__all__ = ["app", "main"]
