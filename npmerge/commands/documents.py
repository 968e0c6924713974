"""The documents of a recipe, one after the other, each to a folder: weights first, then what stands beside them."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import typer

from npmerge.checkpoint.partial import emptied, sync_folder
from npmerge.checkpoint.sharded import ShardedModel, open_model
from npmerge.checkpoint.stored import StoredModel
from npmerge.commands.planning import Asked, Planned, planned
from npmerge.folder import Provenance, differences, files_beside, finish, hash_of_path
from npmerge.folder.networks import as_network
from npmerge.folder.record import record_of
from npmerge.recipe import Recipe
from npmerge.recipe.groups import inputs_of
from npmerge.recipe.plan import Plan
from npmerge.recipe.planned import PlannedModel
from npmerge.reports.progress import shown
from npmerge.stream.copies import compared
from npmerge.stream.engine import Options, over_budget
from npmerge.stream.outcomes import Outcome, digests
from npmerge.stream.writing import Destination, write_model

UNKNOWN = f"blake3:{'0' * 64}"
"""Stands for a hash in headers that are laid out before it is known."""

Hashes = Mapping[str, Future[str]]


class Made(NamedTuple):
    """A merged model.

    Attributes:
        plan: that was followed.
        outcomes: of its steps.
        notes: what is to be said of it, a line each.
        changed: what is not as in the merge that is made again, a line each.
    """

    plan: Plan
    outcomes: list[Outcome]
    notes: list[str]
    changed: list[str]


@dataclass(frozen=True)
class Documents:
    """What is the same for all documents of a recipe.

    Attributes:
        asked: the recipe, and what is added to it.
        out: where the result will be.
        shard_bytes: the most that the tensors of one file of it take.
        recorded: what the record says of the command line.
        options: threads and memory.
        quiet: whether no progress is shown.
        keep: whether what has been written is to be of use after an error.
        distributed: whether several processes learn together.
        hashes: of inputs, by path, which are known already.
    """

    asked: Asked
    out: Path
    shard_bytes: int
    recorded: Mapping[str, Any]
    options: Options
    quiet: bool
    keep: bool
    distributed: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> dict[int, Planned]:
        """Plan all that can be planned now, so that what is wrong is told before anything is made.

        A document whose tokenizers come from a result has to wait for it.

        Returns:
            By their numbers the documents that use no result of another: their plans stay as they are.
        """
        results: dict[str, StoredModel] = {}
        lasting: dict[int, Planned] = {}
        for number, recipe in enumerate(self.asked.recipes):
            if results and (recipe.tokenizer or recipe.tokenizer_source):
                break
            document = self._planned(recipe, results)
            if results.keys().isdisjoint(model.name for model in document.plan.models):
                lasting[number] = document
            results[str(recipe.name)] = PlannedModel(str(recipe.name), document.plan)
        return lasting

    def make(self, folder: Path, ready: Mapping[int, Planned]) -> Made:
        """Make every document.

        Args:
            folder: those before the last are made in a folder of their own inside this one, the last in its `model`.
            ready: documents that are planned, by their numbers.
        """
        recipes = self.asked.recipes
        notes: list[str] = []
        results: dict[str, StoredModel] = {}
        hashers = ThreadPoolExecutor(max(1, self.options.threads // 2), thread_name_prefix="hash")
        hashes = {path: hashers.submit(str, known) for path, known in self.hashes.items()}
        try:
            for number, recipe in enumerate(recipes):
                document = ready.get(number) or self._planned(recipe, results)
                for path in (*files_of(document.plan, results), *_examples(document)):
                    hashes.setdefault(str(path), hashers.submit(hash_of_path, path))
                if recipe is not recipes[-1]:
                    made, said = self._intermediate(document, folder, number)
                    results[str(recipe.name)] = made
                    notes += [f"{recipe.name}: {text}" for text in said]
                    self._wait(number)
            made_last = self._final(document, folder, hashes, _given(recipes))
            self._wait(len(recipes))
            return made_last._replace(notes=[*notes, *made_last.notes])
        finally:
            hashers.shutdown(cancel_futures=True)

    def attend(self, folder: Path) -> None:
        """Take part in learning, where another process makes every document in this folder."""
        recipes = self.asked.recipes
        results: dict[str, StoredModel] = {}
        for number, recipe in enumerate(recipes):
            document, place = self._planned(recipe, results), _result(folder, number)
            work = folder / "fit" if recipe is recipes[-1] else place.with_suffix(".fit")
            if recipe.learn is not None:
                self._followed(document, None, work)
            self._wait(number if recipe is not recipes[-1] else len(recipes))
            if recipe is not recipes[-1]:
                results[str(recipe.name)] = open_model(place, name=str(recipe.name))

    def _wait(self, number: int) -> None:
        """For the other processes, at the end of a document."""
        if self.distributed:
            from npmerge.learning.hosts import wait_for_all

            wait_for_all(f"document {number}")

    def _planned(self, recipe: Recipe, results: Mapping[str, StoredModel]) -> Planned:
        return planned(recipe, results, seed=self.asked.seed, mergekit_semantics=self.asked.mergekit_semantics, out=self.out)

    def _intermediate(self, document: Planned, folder: Path, number: int) -> tuple[ShardedModel, list[str]]:
        """The result, and what is to be said of it; its report stays beside the final model."""
        name, place = str(document.recipe.name), emptied(_result(folder, number))
        plan, said = self._followed(document, folder / "model" / "reports" / name, place.with_suffix(".fit"))
        self._write(plan, Destination(place, place.with_suffix(".journal"), keep=self.keep), name)
        _finish(document, place, Provenance(self.asked.text), name)
        return open_model(place, name=name), said

    def _final(self, document: Planned, folder: Path, hashes: Hashes, models: tuple[str, ...]) -> Made:
        model = folder / "model"
        plan, said = self._followed(document, model, folder / "fit")
        target = Destination(model, folder / "journal", self.shard_bytes, partial(self._metadata, document, hashes), self.keep)
        outcomes = self._write(plan, target, self.out.name)
        done = {step.name: step.action for step in document.plan.steps}
        outcomes = [replace(x, action=done[x.name]) for x in outcomes]  # what was learned is copied into the files
        merged = open_model(model)
        copies = [*said, *compared(plan, merged)]
        sync_folder(model)
        outputs = digests(outcomes, {path.name: header.tensors for path, header in merged.files.items()})
        provenance = replace(self._provenance(hashes, final=True), outputs=outputs, models=models)
        notes = _finish(document, model, provenance, self.out.resolve().name)
        changed = differences(self.asked.replay, provenance) if self.asked.replay else []
        return Made(document.plan, outcomes, [*copies, *notes], changed)

    def _followed(self, document: Planned, report: Path | None, work: Path) -> tuple[Plan, list[str]]:
        """The plan of what is written, when the networks of a document have been aligned and learned from; what to say."""
        if report is not None:
            self._warn(document)
        if document.blocks is None:
            return document.plan, []
        from npmerge.learning.run import follow  # imports flax and Optax

        return follow(document.blocks, report, work, quiet=self.quiet or report is None, keep=self.keep)

    def _warn(self, document: Planned) -> None:
        """Say what `npmerge plan` warns of, before anything is done."""
        of = "" if document.recipe is self.asked.recipes[-1] else f"{document.recipe.name}: "
        for warning in () if self.quiet else (*document.plan.warnings, *over_budget(document.plan, self.options)):
            typer.echo(f"warning: {of}{warning}", err=True)

    def _write(self, plan: Plan, target: Destination, label: str) -> list[Outcome]:
        from npmerge.stream.kernels import kernel_of  # imports JAX

        kernel = partial(kernel_of, mergekit_semantics=plan.mergekit_semantics, seed=plan.seed)
        with shown(plan.bytes_in, label, quiet=self.quiet) as progress:
            return write_model(plan, kernel, target, self.options, progress)

    def _provenance(self, hashes: Hashes, *, final: bool) -> Provenance:
        found = {path: x.result() if final else UNKNOWN for path, x in hashes.items()}
        return Provenance(self.asked.text, self.recorded, found)

    def _metadata(self, document: Planned, hashes: Hashes, final: bool) -> dict[str, str]:
        plan, libraries = document.plan, document.recipe.libraries
        record = record_of(self._provenance(hashes, final=final), plan.seed, plan.mergekit_semantics, libraries=libraries)
        record.pop("outputs")
        return {"npmerge": json.dumps(as_network(plan, record) or record)}


def _finish(document: Planned, folder: Path, provenance: Provenance, name: str) -> list[str]:
    return finish(folder, document.plan, document.recipe, provenance, vocabulary=document.vocabulary, name=name)


def _given(recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """The models that documents name, without their own results."""
    names = {recipe.name for recipe in recipes}
    return tuple(dict.fromkeys(model for recipe in recipes for model in inputs_of(recipe) if model not in names))


def _result(folder: Path, number: int) -> Path:
    """Where a document that is not the last is made."""
    return folder / "results" / str(number)


def _examples(document: Planned) -> list[Path]:
    """The examples that a document reads, and the code of the user that it runs."""
    if document.blocks is None:
        return []
    from npmerge.learning.run import code_files, data_files

    return [*data_files(document.recipe), *code_files(document.blocks)]


def files_of(plan: Plan, results: Mapping[str, StoredModel]) -> list[Path]:
    """The files that a plan reads and those beside them, without those of results of earlier documents."""
    own = [model for model in plan.models if model.name not in results]
    return [path for model in own for path in (*model.read_from, *files_beside(model))]
