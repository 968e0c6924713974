"""Options that several commands share."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npmerge.commands.alignments import FUSIONS, METHODS, PLEAS

if TYPE_CHECKING:
    from npmerge.stream.engine import Options

Recipe = Annotated[
    Path,
    typer.Argument(
        help="A recipe in YAML, as mergekit-yaml and mergekit-multi read it, or the npmerge.json of a merge to repeat."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Decides what is random, such as the entries that DARE drops; by default the recipe's seed, or 0."),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads that read and compute; by default one for each core. They change no byte of the result."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="The most memory for tensors, besides some 400 MB of libraries, such as 64MB or 2GB; a block of every model is "
        "held at least. By default 256MB, and more for methods that need a tensor whole."
    ),
]
MergekitSemantics = Annotated[
    bool,
    typer.Option(
        "--mergekit-semantics",
        help="Do as mergekit 0.1.5 does where the papers, which are followed by default, say otherwise: "
        "npmerge/recipe/README.md lists the differences.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a line for every tensor.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Force = Annotated[
    bool, typer.Option("--force", help="Write into a folder that already has files; those of the same names are replaced.")
]
Replace = Annotated[
    bool, typer.Option("--force", help="Replace the result of an earlier run; other folders are never replaced.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, with everything that is known.")]


# npmerge demo
DemoSplit = Annotated[
    str,
    typer.Option(
        help="How the digits are divided between the two networks: same (each has all), 80-20 (80 % of 0-4 and 20 % of 5-9 "
        "for the first, the rest for the second) or disjoint (0-4 and 5-9)."
    ),
]
DemoSeed = Annotated[int, typer.Option(help="The seed of a single run, or the first of several.")]
DemoSeeds = Annotated[int, typer.Option(help="How many seeds to run; of several, the report gives mean and deviation.")]
DemoOut = Annotated[Path, typer.Option(help="Folder for report.md, summary.json and curves.png.")]
DemoQuick = Annotated[
    bool, typer.Option("--quick", help="Smaller networks and fewer steps: some seconds, to see that it runs.")
]

# npmerge align
AlignFiles = Annotated[
    list[Path],
    typer.Argument(
        help="Two or more checkpoints of one architecture, in any format that is read, which npmerge.checkpoint.save_network "
        "wrote or whose tensors have PyTorch's names; the first is the reference."
    ),
]
AlignMethod = Annotated[
    str,
    typer.Option(
        help=f"How units are matched: one of {', '.join(METHODS)}. Or what makes one network of all: {PLEAS}, of the size "
        f"--budget, or {' and '.join(FUSIONS)}, of the width --width. With data, activation-matching is the one to begin with."
    ),
]
AlignBudget = Annotated[
    float | None,
    typer.Option(
        help=f"For {PLEAS}, which needs it (there is no default): operations of the merged network as a multiple of those of "
        "one network, from 1 to the number of networks."
    ),
]
AlignWidth = Annotated[
    float | None,
    typer.Option(
        help=f"For {' and '.join(FUSIONS)}: units of every layer as a multiple of those of the first network; 1 by default."
    ),
]
AlignData = Annotated[
    Path | None,
    typer.Option(
        help="Examples of the task: an .npz file with the array `inputs`, which methods on activations need, and the integers "
        "`labels`, without which no loss is measured. Images are (examples, height, width, channels), normalised as in "
        "training; for networks of text they are tokens, integers (examples, positions), and labels what is to be predicted "
        "there. By default none: what needs no examples is done."
    ),
]
AlignSeed = Annotated[int, typer.Option(help="Decides what is random in the method and in the checks of the report.")]
AlignPoints = Annotated[
    int | None,
    typer.Option(
        help="On how many networks between the reference and each other one the loss is measured, both ends included; 11 by "
        f"default. For {PLEAS}: so many sizes, from one network to all, are merged, measured and written as well, which takes "
        "as much time for each; by default that of --budget alone."
    ),
]
AlignApproximate = Annotated[
    bool,
    typer.Option(
        "--approximate",
        help="For procrustes and cca: also map units where that changes what a network computes, as through a ReLU.",
    ),
]
AlignOut = Annotated[
    Path, typer.Option(help="Folder for the networks, report.md, summary.json (the same numbers) and figures.")
]

# npmerge methods
MethodsName = Annotated[
    str | None,
    typer.Argument(
        help="One method by its name in the library or in recipes, to be told what it does; by default all of them."
    ),
]
MethodsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs: an object with a key for each method.")]

# npmerge merge
MergeOut = Annotated[Path, typer.Argument(help="Folder of the merged model.")]
MergeDevice = Annotated[
    str, typer.Option(help="Where to compute: cpu, gpu (or cuda), tpu, or one of several by its number, as in cuda:1.")
]
MergeShardSize = Annotated[
    str | None,
    typer.Option(help="The most that one file of the result takes: 500MB, 5GB or, as in mergekit, 5B; 5GB by default."),
]
MergeResume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on where an interrupted merge stopped; if this one is interrupted, keep what it has written."
    ),
]
MergeDistributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="For recipes with `learn`: this is one of several processes of a job of SLURM or Open MPI or of a TPU pod, which "
        "learn together; the first of them writes.",
    ),
]

MergeReport = Annotated[
    bool,
    typer.Option("--report", help="Also write report.html and report.md: what was merged and what came of it."),
]

# npmerge report
ReportFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a merge, or one that npmerge align or compare has written.")
]
ReportData = Annotated[
    Path | None,
    typer.Option(
        help="Examples to measure on, as for npmerge evaluate: an .npz file, a folder of images, or text; by default those "
        "that the recipe holds out."
    ),
]
ReportBase = Annotated[
    Path | None,
    typer.Option(help="The model that all were fine-tuned from, where the recipe names none; by default its base."),
]
ReportArchitecture = Annotated[
    str | None,
    typer.Option(help="The network, as for npmerge evaluate; by default what the recipe or the tensors tell."),
]
ReportOut = Annotated[Path | None, typer.Option(help="Folder for the report; by default DIR itself.")]

# npmerge inspect
InspectPath = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint: a file or folder in safetensors, PyTorch, npz, Flax msgpack, Orbax, Keras, GGUF or ONNX, or the "
        "index of several files."
    ),
]
InspectValues = Annotated[
    bool,
    typer.Option(
        "--values",
        help="Read the tensors too: mean, deviation, smallest and largest value, NaN, infinities, equal tensors.",
    ),
]

# npmerge compare
ComparePaths = Annotated[
    list[Path], typer.Argument(help="Two models or more, in any format; the others are compared with the first.")
]
CompareBase = Annotated[
    Path | None,
    typer.Option(
        help="The model that all were fine-tuned from, whose differences from them (task vectors) are then compared, too; by "
        "default none."
    ),
]
CompareOut = Annotated[
    Path | None, typer.Option(help="Folder for report.md, summary.json and heatmap.png; by default nothing is written.")
]

# npmerge evaluate
EvaluateModels = Annotated[list[str], typer.Argument(help="Checkpoints, or base+adapter for a model with a LoRA adapter.")]
EvaluateData = Annotated[
    Path,
    typer.Option(
        help="Examples: an .npz file with the arrays `inputs` and `labels`, a folder with a folder of images for each class, "
        "or text, of which each next token is predicted."
    ),
]
EvaluateArchitecture = Annotated[
    str | None,
    typer.Option(
        help="One of npmerge.models, such as ResNetCifar, hf, torch:module:function or module:function of your own; by default "
        "what the tensors and config.json tell."
    ),
]
EvaluateBatchSize = Annotated[int, typer.Option(help="Examples that are computed together.")]

# npmerge convert
ConvertSource = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A checkpoint in safetensors, PyTorch, npz, Flax msgpack, Orbax, Keras, GGUF or ONNX: a file or a folder.",
    ),
]
ConvertOut = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="A file that ends in .safetensors or .npz, or a folder: of safetensors with an index, or of Orbax.",
    ),
]
ConvertTarget = Annotated[
    str | None,
    typer.Option(
        "--format", help="What a folder is written as: safetensors (the default) or orbax (the default of names in .orbax)."
    ),
]
ConvertDtype = Annotated[
    str | None,
    typer.Option(
        help="Round floating-point tensors to float64, float32, float16 or bfloat16; by default every tensor keeps its dtype."
    ),
]
ConvertShardSize = Annotated[
    str | None, typer.Option(help="The most that one file of a folder of safetensors takes, such as 500MB; 5GB by default.")
]
ConvertForce = Annotated[bool, typer.Option("--force", help="Replace the output of an earlier conversion.")]

# npmerge merge-lora
MergeLoraAdapters = Annotated[list[Path], typer.Argument(help="Folders of LoRA adapters of one base, as PEFT writes them.")]
MergeLoraOut = Annotated[Path, typer.Option("--out", "-o", help="Folder of the merged adapter.")]
MergeLoraWeight = Annotated[
    list[float] | None,
    typer.Option("--weight", "-w", help="What each adapter is multiplied by: one --weight for each, in order; 1 by default."),
]
MergeLoraRank = Annotated[
    int | None,
    typer.Option(help="Cut every update to this rank; by default the sum is exact, and its rank the sum of the ranks."),
]

# npmerge extract-lora
ExtractLoraModel = Annotated[str, typer.Argument(help="The model that was fine-tuned.")]
ExtractLoraBase = Annotated[str, typer.Argument(help="The model that it was fine-tuned from.")]
ExtractLoraOut = Annotated[Path, typer.Argument(help="Folder of the adapter.")]
ExtractLoraRank = Annotated[int, typer.Option(help="The highest rank that the update of a weight gets.")]
ExtractLoraMaxError = Annotated[
    float | None,
    typer.Option(
        help="Give a weight a smaller rank where its relative error (0 to 1, in the Frobenius norm) is then still at most "
        "this; by default every weight gets --rank."
    ),
]


def engine_options(num_threads: int | None, memory_budget: str | None) -> "Options":
    """How a plan is run. Raises ValueError for less than one thread and for what is no size."""
    from npmerge.commands.merge import default_options  # not needed for --help
    from npmerge.reports.numbers import parse_size, without_unit

    options = default_options()
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"--num-threads must be 1 or more, got {num_threads}")
        options = replace(options, threads=num_threads)
    if memory_budget is not None:
        for line in without_unit("--memory-budget", memory_budget):
            typer.echo(f"warning: {line}", err=True)
        options = replace(options, budget=parse_size("--memory-budget", memory_budget))
    return options


def check_seed(seed: int | None) -> None:
    """Check that a seed has at most 32 bits, if there is one. Raises ValueError."""
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")
