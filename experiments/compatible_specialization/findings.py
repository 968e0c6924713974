"""What was expected of merges of specialised experts and what came out, in words that follow the rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from experiments.claims import Claim as Said
from experiments.claims import Marked, marked
from experiments.compatible_specialization.results import Results
from experiments.compatible_specialization.settings import (
    ALIGNED,
    AVERAGE,
    BASE,
    BEST,
    BOTH,
    EQUAL_FEATURES,
    EXPERTS,
    FEATURES,
    LAYERS,
    NP,
    OUTPUTS,
    ROUTED,
    SINGLE,
    TUNED_AVERAGE,
    TUNED_BASE,
    WEIGHTS,
    routing,
)
from experiments.compatible_specialization.similarity import MADE, READ
from experiments.differences import Difference, paired
from npmerge.reports.tables import markdown_table

ONE = routing(1)
PAPER = "Pari et al. 2024, arXiv 2411.02207"
REPOSITORY = f"{PAPER}, its repository"


@dataclass(frozen=True)
class Claim:
    """That one way has a lower test loss than another, or a question.

    Attributes:
        expected: in words.
        better: a way.
        than: another.
        sign: 1 if the first is expected to have the lower loss, -1 if the higher, 0 for an open question.
    """

    expected: str
    better: str
    than: str
    sign: int = 0


CLAIMS = (
    Claim("Expected, from the paper: experts merged in features beat the better one alone.", FEATURES, BEST, 1),
    Claim("Expected, from the paper: a router beats one share for all tokens.", ONE, FEATURES, 1),
    Claim("Expected, from the paper: a router for each layer beats a single one.", ONE, SINGLE, 1),
    *(
        Claim(f"Expected, from its repository: a pool of {k} layers beats one of {k - 1}.", routing(k), routing(k - 1), 1)
        for k in (2, 3, 4)
    ),
    Claim("Question: features or weights, both with the share that validation chooses?", FEATURES, WEIGHTS),
    Claim("Question: features with equal shares, or the weight average?", EQUAL_FEATURES, AVERAGE),
    Claim("Question: is mixing at the output as good as in every block?", OUTPUTS, FEATURES),
    Claim("Question: are experts, averaged in features, worth one network that saw as much of both domains?", FEATURES, BOTH),
    Claim("Question: and at the output?", OUTPUTS, BOTH),
    Claim("Question: does the aligned pool help a router?", ALIGNED, ONE),
    Claim("Question: does NP Merge, one network, reach the router, two?", NP, ONE),
    Claim("Control: NP Merge beside the average fine-tuned on the same data.", NP, TUNED_AVERAGE),
    Claim("Control: coefficients by layer beside it.", LAYERS, TUNED_AVERAGE),
    Claim("Control: a router beside it.", ONE, TUNED_AVERAGE),
    Claim("Control: the largest pool beside it.", routing(4), TUNED_AVERAGE),
    Claim("Control: is the average a better start than the base?", TUNED_AVERAGE, TUNED_BASE),
)


def in_short(results: Results) -> Iterator[str]:
    """What a reader should know first."""
    first, last = min(results.steps), max(results.steps)
    falls = [found for place in (READ, MADE) if (found := results.fall(place)) is not None]
    if falls:
        told = " and ".join(f"{found.mean:+.2f}" for found in falls)
        yield f"From {first} to {last} steps the experts become less alike: CKA {told} (what blocks read, what they make)."
    gain = {than: results.change(ONE, than) for than in (FEATURES, OUTPUTS)}
    parts = [f"below {than} it {_course(x)} ({_told(x)} nats)" for than, x in gain.items() if x is not None]
    if parts:
        yield f"What a router for each layer gains meanwhile, the mean over targets: {'; '.join(parts)}."
    for target in results.targets:
        ways = (BEST, FEATURES, ONE, OUTPUTS, BOTH, NP, TUNED_AVERAGE)
        losses = {way: results.losses(target, last, way) for way in ways}
        told = ", ".join(f"{way} {np.mean(list(x.values())):.3f}" for way, x in losses.items() if x)
        if told:
            yield f"Test loss after {last} steps, {target}: {told}."


def _course(found: Difference) -> str:
    if len(found.values) < 2:
        return "changes, of one seed"
    return {1: "grows", -1: "shrinks", 0: "is not told to change"}[found.verdict]


def findings(results: Results) -> Iterator[str]:
    """A line for each thing that the rows have something to say of."""
    yield from _at_home(results)
    yield from _in_themselves(results)
    yield from _shrinking(results)
    yield from _alignment(results)
    yield from (line for claim in CLAIMS if (line := _judged(results, claim)))
    yield from _use(results)


def claims(results: Results) -> Iterator[Marked]:
    """What is expected, with its mark; settings are targets and moments, places in a block, and ways without a router."""
    first, last = (f"after {n} steps" for n in (min(results.steps), max(results.steps)))
    gains = [(than, results.change(ONE, than)) for than in (BEST, FEATURES, EQUAL_FEATURES, OUTPUTS)]
    averages = [
        (f"{way}, {target}", results.change(way, BEST, targets=[target]))
        for way in (EQUAL_FEATURES, AVERAGE) for target in results.targets
    ]  # fmt: skip
    told: list[tuple[Said, Iterable[tuple[str, Difference | None]]]] = [
        (Said(PAPER, "experts become less alike by fine-tuning", f"CKA {last}", first, -1, unit=""),
         [(place, results.fall(place)) for place in (READ, MADE)]),
        (Said("asked here", "what routing gains shrinks while they do", f"what {ONE} gains {last}", first, -1, " nats"), gains),
        (Said(REPOSITORY, "what averages gain on an expert shrinks with it", f"what they gain {last}", first, -1, " nats"),
         averages),
    ]  # fmt: skip
    for claim in (x for x in CLAIMS if x.sign):
        says = claim.expected.partition(": ")[2].rstrip(".")
        source = REPOSITORY if "repository" in claim.expected else PAPER
        places = [
            (f"{target}, {n} steps", results.gain(claim.better, claim.than, steps=[n], targets=[target]))
            for target in results.targets for n in results.steps
        ]  # fmt: skip
        told.append((Said(source, says, f"loss of {claim.than}", f"loss of {claim.better}", claim.sign, " nats"), places))
    for said, found in told:
        if (judged := marked(said, found)) is not None:
            yield judged


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim the gain at each number of steps."""
    rows = []
    for claim in CLAIMS:
        for target in results.targets:
            found = [results.gain(claim.better, claim.than, steps=[n], targets=[target]) for n in results.steps]
            cells = ["" if x is None else f"{_told(x)}, {_word(x)}" for x in found]
            rows.append((f"{claim.than} minus {claim.better}, {target}", *cells))
    header = ("test loss, nats; the words are of the second way", *(f"{n} steps" for n in results.steps))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def gains(results: Results) -> list[str]:
    """Lines of a table: how much lower the loss of each router is than that of what has none, early and late."""
    first, last = min(results.steps), max(results.steps)
    rows = []
    for way in ROUTED:
        for than in (BEST, FEATURES, BASE):
            found = [results.gain(way, than, steps=[n]) for n in (first, last)] + [results.change(way, than)]
            if found[0] is not None:
                rows.append((f"{way}, below {than}", *("" if x is None else _told(x) for x in found)))
    return markdown_table(("gain in test loss, nats", f"{first} steps", f"{last} steps", "change"), rows)


def _at_home(results: Results) -> Iterator[str]:
    """How far experts are specialised: what fine-tuning brings on an expert's own domain and costs on the other's."""
    last = max(results.steps)
    for name in EXPERTS:
        told = []
        for domain in EXPERTS:
            base, own = (results.at_home(domain, last, network) for network in (BASE, name))
            found = paired([(base, own)])
            if found is not None:
                told.append(f"{domain} {_told(found)}")
        if told:
            yield f"The expert for {name} after {last} steps, loss below the base's: {'; '.join(told)} nats."


def _in_themselves(results: Results) -> Iterator[str]:
    """How the losses of merges change with the experts' steps, beside nothing that changes too."""
    first, last = min(results.steps), max(results.steps)
    for way in (FEATURES, AVERAGE, OUTPUTS, ONE):
        each = [(target, results.change(way, BASE, targets=[target])) for target in results.targets]
        told = "; ".join(f"{target} {_told(x)} ({_word(x)})" for target, x in each if x is not None)
        if told:
            yield (
                f"Expected, from its repository: averages lose with specialisation, a router hardly. Loss of {way} after "
                f"{first} steps minus that after {last}, in nats: {told}."
            )


def _shrinking(results: Results) -> Iterator[str]:
    first, last = min(results.steps), max(results.steps)
    falls = {place: results.fall(place) for place in (READ, MADE)}
    told = "; ".join(f"{place} {_told(x)} ({x.word})" for place, x in falls.items() if x is not None)
    if told:
        where = "the mean over blocks, of what they read without the first, which reads the same of both"
        yield f"CKA of the experts on the target, {where}, from {first} to {last} steps: {told}."
    asked = [("routing's", way, than) for way in (ONE, routing(4)) for than in (BEST, FEATURES, OUTPUTS)]
    for whose, way, than in (*asked, *(("an average's", way, BEST) for way in (EQUAL_FEATURES, AVERAGE))):
        each = [_changed(results, way, than, target) for target in results.targets]
        if any(each):
            yield (
                f"Does {whose} gain shrink with steps, as CKA falls? {way}, loss below {than}, in nats: "
                f"{'; '.join(filter(None, each))}."
            )


def _changed(results: Results, way: str, than: str, target: str) -> str:
    """The gain after the fewest steps and after the most, on a target."""
    first, last = min(results.steps), max(results.steps)
    early, late = (results.gain(way, than, steps=[n], targets=[target]) for n in (first, last))
    change = results.change(way, than, targets=[target])
    if early is None or late is None or change is None:
        return ""
    verdict = {1: "it grows", -1: "it shrinks", 0: "not told apart"}[change.verdict]
    verdict = "one seed cannot tell" if len(change.values) < 2 else verdict
    return f"{target} {_told(early)} after {first} steps, {_told(late)} after {last}, changed by {_told(change)}: {verdict}"


def _alignment(results: Results) -> Iterator[str]:
    found = {n: results.gain(ALIGNED, ONE, steps=[n]) for n in results.steps}
    told = "; ".join(f"{n} steps {_told(x)} ({_word(x)})" for n, x in found.items() if x is not None)
    whole = results.gain(ALIGNED, ONE)
    if whole is not None:
        yield (
            f"Does alignment help a router, and more where experts are further apart? {ALIGNED}, loss below {ONE}, over all "
            f"moments and targets {_told(whole)} nats ({_word(whole)}): {told}."
        )


def _judged(results: Results, claim: Claim) -> str:
    each = [(target, results.gain(claim.better, claim.than, targets=[target])) for target in results.targets]
    found = [(target, x) for target, x in each if x is not None]
    if not found:
        return ""
    told = "; ".join(f"{target} {_told(x)}: {_answer(claim, x)}" for target, x in found)
    return f"{claim.expected} Loss of {claim.than} minus loss of {claim.better}, in nats, the mean over moments: {told}."


def _answer(claim: Claim, found: Difference) -> str:
    if len(found.values) < 2:
        return "one seed cannot tell"
    if not found.verdict:
        return "not told apart"
    if claim.sign:
        return "so" if found.verdict == claim.sign else "the opposite"
    return f"{claim.better if found.verdict > 0 else claim.than} has the lower loss"


def _use(results: Results) -> Iterator[str]:
    for way in ROUTED:
        rows = [row for row in results.usage if row["way"] == way and row["steps"] == max(results.steps)]
        if rows:
            own = np.mean([np.max(row["weights"][0]) for row in rows])
            near = np.mean([np.sum(row["weights"][1:]) for row in rows])
            share = np.mean([row["entropy"] / np.log(np.size(row["weights"])) for row in rows])
            others = f", experts of other layers {near:.2f}" if len(rows[0]["weights"]) > 1 else ""
            yield (
                f"Use of experts after {max(results.steps)} steps, {way}, the mean over targets: the more used of a block's "
                f"own two has a weight of {own:.2f}{others}; entropy {100 * share:.0f} % of that of equal weights."
            )


def _told(found: Difference) -> str:
    return found.told(scale=1, unit="", digits=4)


def _word(found: Difference) -> str:
    if len(found.values) < 2:
        return "one seed"
    return {1: "lower loss", -1: "higher loss", 0: "not told apart"}[found.verdict]
