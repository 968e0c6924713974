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
from npmerge.commands.signals import interrupted_between_imports
from npmerge.version import __version__

app = typer.Typer(
    help="Merge trained networks into one: by recipes of mergekit, after alignment where they come from different seeds, and "
    "with coefficients that are learned from data if you like. `npmerge COMMAND --help` says more of each command.",
    rich_markup_mode="markdown",  # which joins the lines of a paragraph
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; bad input, and what the file system refuses, ends in one line and exit status 2."""
    gc.set_threshold(50_000)  # looking for cycles during imports would take a tenth of the time in which a merge starts
    atexit.register(gc.freeze)  # and one last look through everything would delay the end
    interrupted_between_imports()
    _plain_without_terminal()
    try:
        check_flags(sys.argv[1:])
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"npmerge: {error}", err=True)
        sys.exit(2)


def _plain_without_terminal() -> None:
    """Notebooks set FORCE_COLOR for their shells, where a line that moves on would be as many lines."""
    if not sys.stderr.isatty():
        os.environ.pop("FORCE_COLOR", None)


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
    *,
    split: options.DemoSplit = "80-20",
    seed: options.DemoSeed = 0,
    seeds: options.DemoSeeds = 1,
    out: options.DemoOut = Path("npmerge-demo"),
    quick: options.DemoQuick = False,
    force: options.Force = False,
) -> None:
    """Show on real data what each step of merging is worth.

    Two small networks learn scikit-learn's handwritten digits, each on its own part. They are aligned, averaged and merged with
    learned coefficients, and a report compares every step with fine-tuning on the same data. It takes a minute or two.
    """
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
    files: options.AlignFiles,
    *,
    method: options.AlignMethod = "weight-matching",
    budget: options.AlignBudget = None,
    width: options.AlignWidth = None,
    data: options.AlignData = None,
    seed: options.AlignSeed = 0,
    points: options.AlignPoints = None,
    approximate: options.AlignApproximate = False,
    out: options.AlignOut = Path("npmerge-align"),
    force: options.Force = False,
) -> None:
    """Reorder the units of networks as those of the first, or merge networks of different seeds into one.

    Networks that were trained from different seeds hold the same features in different units (neurons, channels, heads).
    Aligned, they compute what they did, and can be averaged or merged by a recipe. The report says how much closer they have
    come.
    """
    from npmerge.commands import align_requests  # not needed for --help

    given: dict[str, Any] = {"data": data, "seed": seed, "out": out, "force": force}
    request = align_requests.request_of(
        files, method, budget=budget, width=width, points=points, approximate=approximate, **given
    )
    with _interruptible():
        if isinstance(request, align_requests.PleasRequest):
            from npmerge.commands.pleas import run_pleas

            run_pleas(request)
        elif isinstance(request, align_requests.FusionRequest):
            from npmerge.commands.fusion import run_fusion

            run_fusion(request)
        else:
            from npmerge.commands.align import run_align

            run_align(request)


@app.command()
def methods(
    name: options.MethodsName = None,
    *,
    as_json: options.MethodsJson = False,
) -> None:
    """List the merge methods of the library, and what each of them needs.

    For each: how many models it takes, whether it needs their common base, data, labels, activations, gradients, a random key
    or models of one initialisation, and its hyper-parameters with their defaults and the values that its paper searches. For a
    method of recipes, such as dare_ties: its parameters there.
    """
    from npmerge.commands.catalogue_page import methods_page  # not needed for --help

    typer.echo(methods_page(name, as_json=as_json))


@app.command()
def merge(
    recipe: options.Recipe,
    out: options.MergeOut,
    *,
    device: options.MergeDevice = "cpu",
    out_shard_size: options.MergeShardSize = None,
    seed: options.Seed = None,
    num_threads: options.Threads = None,
    memory_budget: options.Budget = None,
    mergekit_semantics: options.MergekitSemantics = False,
    resume: options.MergeResume = False,
    distributed: options.MergeDistributed = False,
    report: options.MergeReport = False,
    force: options.Replace = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge checkpoints by a recipe of mergekit, with learned coefficients if it says so.

    Tensor by tensor, in memory that does not grow with the model. The folder appears whole or not at all; its npmerge.json lets
    the same command make it again, byte for byte.
    """
    from npmerge.commands.merge import Request, run_merge  # not needed for --help

    options.check_seed(seed)
    request = Request(
        recipe,
        out,
        device=device,
        shard_size=out_shard_size,
        seed=seed,
        options=options.engine_options(num_threads, memory_budget),
        mergekit_semantics=mergekit_semantics,
        resume=resume,
        force=force,
        quiet=quiet,
        verbose=verbose,
        distributed=distributed,
        report=report,
    )
    with _interruptible(kept=resume):
        taken = run_merge(request)
    if taken is not None:
        _report(out, quiet=quiet, taken=taken)


@app.command()
def report(
    folder: options.ReportFolder,
    *,
    data: options.ReportData = None,
    base: options.ReportBase = None,
    architecture: options.ReportArchitecture = None,
    out: options.ReportOut = None,
    quiet: options.Quiet = False,
) -> None:
    """Write what was merged and what came of it, as a page to send to a colleague.

    report.html needs no network and reads well on a phone; report.md says the same, report.json keeps the numbers. What needs
    the inputs of the merge is measured where they still are what they were. The page of an alignment or a comparison is built
    anew from its summary.json.
    """
    _report(folder, data=data, base=base, architecture=architecture, out=out, quiet=quiet)


def _report(folder: Path, *, quiet: bool, taken: dict[str, Any] | None = None, **given: Any) -> None:
    """Write a report and say what it says; inputs of a merge that has just been made are as they were."""
    from npmerge.commands.report import run_report  # not needed for --help
    from npmerge.commands.report_folder import Request

    with _interruptible():
        lines = run_report(Request(folder, quiet=quiet, trusted=taken is not None, **given), taken)
    for line in [] if quiet else lines:
        typer.echo(line)


@app.command()
def plan(
    recipe: options.Recipe,
    *,
    seed: options.Seed = None,
    num_threads: options.Threads = None,
    memory_budget: options.Budget = None,
    mergekit_semantics: options.MergekitSemantics = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say what a recipe would do, without merging a tensor.

    For each tensor by which method it is merged, of which models and with which numbers, or why it is copied; then the bytes
    that are read and written, and the memory and the time that the merge is predicted to take. Only headers are read; for a
    recipe with `learn` the examples too, and a step of learning is compiled and timed.
    """
    from npmerge.commands.plan import Request, plan_json, plan_page  # not needed for --help

    options.check_seed(seed)
    given = options.engine_options(num_threads, memory_budget)
    request = Request(recipe, seed=seed, mergekit_semantics=mergekit_semantics, verbose=verbose, options=given)
    typer.echo(plan_json(request) if as_json else plan_page(request))


@app.command()
def inspect(
    path: options.InspectPath,
    *,
    values: options.InspectValues = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say what a checkpoint holds.

    Its tensors with shapes and dtypes, its layers, its configuration, and of a merged model what it was made from.
    """
    from npmerge.commands.inspect import inspect_page, inspected  # not needed for --help

    with _interruptible():
        content = inspected(path, values=values)
    typer.echo(json.dumps(content, indent=1) if as_json else inspect_page(content, verbose=verbose))


@app.command()
def compare(
    paths: options.ComparePaths,
    *,
    base: options.CompareBase = None,
    out: options.CompareOut = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Say how far models are from the first of them.

    By tensor, by layer and as a whole: cosine, distance and change of the norm, how many entries differ, NaN and infinities;
    with --base also the cosine of the task vectors and how often these have opposite signs.
    """
    from npmerge.commands.compare import Request, run_compare  # not needed for --help

    with _interruptible():
        typer.echo(run_compare(Request(tuple(paths), base=base, out=out, force=force, verbose=verbose, as_json=as_json)))


@app.command()
def evaluate(
    models: options.EvaluateModels,
    *,
    data: options.EvaluateData,
    architecture: options.EvaluateArchitecture = None,
    batch_size: options.EvaluateBatchSize = 128,
    as_json: options.Json = False,
) -> None:
    """Say how good models are on examples: accuracy, and cross entropy in nats."""
    from npmerge.commands.evaluate import Request, run_evaluate  # not needed for --help

    with _interruptible():
        typer.echo(run_evaluate(Request(tuple(models), data, architecture, batch_size, as_json)))


@app.command()
def convert(
    source: options.ConvertSource,
    out: options.ConvertOut,
    *,
    target: options.ConvertTarget = None,
    dtype: options.ConvertDtype = None,
    out_shard_size: options.ConvertShardSize = None,
    force: options.ConvertForce = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint in another format, bit for bit, without PyTorch.

    Tensors keep their names and values, unless --dtype rounds them. The output appears whole or not at all.
    """
    from npmerge.commands.convert import Request, run_convert  # not needed for --help

    with _interruptible():
        run_convert(Request(source, out, target=target, dtype=dtype, shard_size=out_shard_size, force=force, quiet=quiet))


@app.command("merge-lora")
def merge_lora(
    adapters: options.MergeLoraAdapters,
    *,
    out: options.MergeLoraOut,
    weight: options.MergeLoraWeight = None,
    rank: options.MergeLoraRank = None,
    force: options.Replace = False,
    quiet: options.Quiet = False,
) -> None:
    """Add up LoRA adapters of one base to one adapter.

    The weighted sum of their updates is exact, or cut to a rank: then the relative error of each weight is printed.
    """
    from npmerge.commands.adapters import Request, merge_adapters  # not needed for --help

    with _interruptible():
        page = merge_adapters(adapters, weight or [], Request(out, rank, force=force, quiet=quiet))
    if not quiet:
        typer.echo(page)


@app.command("extract-lora")
def extract_lora(
    model: options.ExtractLoraModel,
    base: options.ExtractLoraBase,
    out: options.ExtractLoraOut,
    *,
    rank: options.ExtractLoraRank,
    max_error: options.ExtractLoraMaxError = None,
    force: options.Replace = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the difference of two models as a LoRA adapter that PEFT reads.

    The relative error of each weight is printed. Biases that differ are stored beside the factors, norms whole.
    """
    from npmerge.commands.adapters import Request, extract_adapter  # not needed for --help

    with _interruptible():
        page = extract_adapter(model, base, Request(out, rank, max_error=max_error, force=force, quiet=quiet))
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
