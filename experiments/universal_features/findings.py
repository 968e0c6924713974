"""What was expected of features and what came out, in words that follow the rows."""

from collections.abc import Iterator

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference
from experiments.universal_features.results import Results, minus, percent
from experiments.universal_features.settings import BASE, CONTROL, MERGES, NP, PARENTS, SLERP


def findings(results: Results) -> Iterator[str]:
    """A line for each thing that the rows have something to say of."""
    yield from _autoencoders(results)
    yield from _fine_tunes(results)
    yield from _kept(results)
    yield from _own(results)
    yield from _losses(results)
    yield from _curve(results)


PAPER = "Horn and Elliott 2025, arXiv 2410.12391"


def claims(results: Results) -> Iterator[Marked]:
    """What the paper found, with its mark; settings are the fine-tunes. Few is taken for less than half."""
    few = Claim(PAPER, "few of the base's features persist through fine-tuning", "persisting", "half of them", -1)
    lost = Claim(PAPER, "fine-tuning removes features", "persisting", f"persisting between two autoencoders of the {BASE}", -1)
    left = Claim(PAPER, "fewer of them persist in the merge", f"persisting in {SLERP}", "persisting in a fine-tune", -1)
    kept = {name: results.kept(BASE, name) for name in (*PARENTS, SLERP)}
    for claim, found in (
        (few, [(name, minus(kept[name], dict.fromkeys(kept[name], 0.5))) for name in PARENTS]),
        (lost, [(name, minus(kept[name], results.ceiling(BASE))) for name in PARENTS]),
        (left, [(name, minus(kept[SLERP], kept[name])) for name in PARENTS]),
    ):
        if (judged := marked(claim, found)) is not None:
            yield judged


def _autoencoders(results: Results) -> Iterator[str]:
    rows = [row for row in results.dictionaries if row["ablated"] > row["loss"]]
    if rows:
        explained, recovered, l0 = (np.mean([row[name] for row in rows]) for name in ("explained", "recovered", "l0"))
        dead = np.mean([row["dead"] / row["features"] for row in rows])
        yield (
            f"Autoencoders, the mean over all: {l0:.1f} features active for a character, {100 * explained:.0f} % of the "
            f"variance explained, {100 * recovered:.0f} % of the loss recovered that ablated units cost, {100 * dead:.0f} % "
            "of the features never active."
        )


def _fine_tunes(results: Results) -> Iterator[str]:
    ceiling = results.ceiling(BASE)
    told = "; ".join(f"{name} {_points(results.kept(BASE, name))}" for name in PARENTS)
    yield (
        "Expected, from the paper: few features persist through fine-tuning. Found, of the base's features: "
        f"{told}; and between two autoencoders of the base itself, where all of them would, {_points(ceiling)}."
    )
    for name in PARENTS:
        found = minus(results.kept(BASE, name), ceiling)
        if found is not None:
            yield f"What fine-tuning itself removes, {name}: persistence minus that control, {_said(found)}."


def _kept(results: Results) -> Iterator[str]:
    told = "; ".join(f"{name} {_points(results.of_parents(name))}" for name in MERGES if results.of_parents(name))
    yield f"Of both parents' features, the mean of the two, a merge keeps: {told}."
    for name in (merge for merge in MERGES if merge != SLERP):
        found = minus(results.of_parents(name), results.of_parents(SLERP))
        if found is not None:
            question = "Does a learned merge keep more of both parents' features than SLERP? " if name == NP else ""
            yield f"{question}{name} minus {SLERP}: {_said(found)}."
    found = minus(results.of_parents(NP), results.of_parents(CONTROL))
    if found is not None:
        yield f"{NP} minus its control, the average fine-tuned on the same windows: {_said(found)}."


def _own(results: Results) -> Iterator[str]:
    told = "; ".join(f"{name} {_points(results.own(name))}" for name in MERGES if results.own(name))
    found = minus(results.own(NP), results.own(SLERP))
    if found is not None:
        yield (
            f"Of the features that fine-tuning made and the base has not, a merge keeps: {told}. {NP} minus {SLERP}: "
            f"{_said(found)}."
        )


def _losses(results: Results) -> Iterator[str]:
    for name in MERGES:
        found = minus(results.losses(name), results.losses(SLERP))
        if name != SLERP and found is not None:
            yield f"Test loss on plays and Lua, {name} minus {SLERP}: {_nats(found)}."
    found = minus(results.losses(NP), results.losses(CONTROL))
    if found is not None:
        yield f"Test loss on plays and Lua, {NP} minus its control: {_nats(found)}."


def _curve(results: Results) -> Iterator[str]:
    ts = sorted({row["t"] for row in results.slerp})
    if ts:
        means = {t: np.mean([(r["plays"] + r["Lua"]) / 2 for r in results.slerp if r["t"] == t]) for t in ts}
        best, published = min(ts, key=lambda t: means[t]), results.settings["t"]
        yield (
            f"SLERP over t, mean test loss on plays and Lua: lowest at t = {best:g} with {means[best]:.3f}, at the published "
            f"{published:g} {means[published]:.3f}, at the ends {means[ts[0]]:.3f} and {means[ts[-1]]:.3f}."
        )


def _points(values: dict[int, float]) -> str:
    return f"{percent(values)} %" if values else "not measured"


def _said(found: Difference) -> str:
    return f"{found.told()}, {found.word}"


def _nats(found: Difference) -> str:
    word = {1: "higher loss", -1: "lower loss", 0: "not told apart"}[found.verdict] if len(found.values) > 1 else "one seed"
    return f"{found.told(scale=1, unit=' nats')}, {word}"
