"""What the page says of how things were done, and where that ends."""

from collections import Counter
from collections.abc import Iterator

from experiments.compositional.networks import FEATURES, TEMPERATURE
from experiments.compositional.results import Results, Row
from experiments.compositional.settings import ADA_START, CONTROLS, HOME, PAPER, REAL
from experiments.compositional.texts import DRAWS, SHARE
from experiments.learning import told_further
from experiments.run import Preset

DATA = {
    "pacs": "PACS (Li et al. 2017), 4 styles, 7 categories",
    "emoji": "emoji in 5 styles of drawing, 9 categories; drawings of different emoji may be the same, as those of most flags "
    "in openmoji_black, so that a network has seen nearly all that this cell's test asks for",
    "digits": "scikit-learn's digits 0 to 3, upright and in three other forms",
    "mnist": "MNIST, 10,000 images of either part at most, upright and in three other forms: turned, inverted, on shades",
    "xnli": "XNLI in English, Swahili, Urdu and Burmese, 7,500 pairs of sentences; tasks: the label of a pair, whether "
    "words are in their order, whether a sentence is a premise, the genre of a premise",
    "manuals": "manual pages of Debian and strings of Django's interface in English, German, Spanish, French, Japanese and "
    "Russian; tasks: the section of a passage (1, 5 or 7), whether a string is the translation of an English one (in English, "
    "whether one in Turkish is its own), whether two passages are of one page, whether words are in their order (in Japanese, "
    "characters); different strings may have the same short translation",
    "made": "sentences that are made up",
}

KNOWN = {
    "images": "; the other half of what it sees are pairs of images, each to be told from others by the same thing drawn in "
    "another style (where a set has no such pairs, as PACS, by itself, shifted otherwise)",
    "text": f"; the other half of what it sees are pairs of texts that say the same in two languages, each to be told from "
    f"others by its partner; in all training {SHARE:.0%} of the tokens are hidden, and what is drawn at random about a text is "
    f"drawn {DRAWS} times",
    "generation": "; the other half of what it sees are images of all styles, asked for without a category",
}
"""What the base learns besides the categories in its own domain, by setting."""

TOGETHER = f"""The base of images and of sentences: the paper's networks were pretrained on far more than one domain, without
which what is learned in one domain hardly holds in another. In its place the base learns which examples belong together:
InfoNCE on cosines of {FEATURES} outputs of its own, temperature {TEMPERATURE:g}, without labels."""

CELLS = """Every category has one held-in cell, drawn by the seed, every domain as many as any other up to one; the other cells
are for generalisation. No label of such a cell's own task is learned from, and nothing is chosen by it. Seen of their domains
are, of examples that are in no test part: which images show the same thing in two styles and which texts say the same in two
languages, and images without their category, which the base learns; what the tokenizer takes its pairs from; and where a
held-in cell asks whether an image shows its category, images of other categories for half of it. What examples show or say is
in one part alone, of those for fine-tuning, for statistics and learned merges, for choices and for tests: one emoji in several
styles, one digit in several forms, one sentence in several languages. Test parts are the same for every seed. Scores are means
over cells."""

AUROC = """AUROC: the area under the ROC curve in percent, of several classes the mean over each against the others. It does not
hang on where the threshold between classes lies, which another domain may shift."""

TUNING = """Hyper-parameters: the highest mean accuracy on the validation data of held-in cells, the loss decides ties; one
after another, twice. Grids of the paper: factors and dropout in tenths up to 1, RegMean's factor in tenths, MaTS 10 to 100
iterations and the factor of task arithmetic that it starts from; of newer methods those of
`experiments/compositional/methods.py`, scales up to 2: where ranks compare methods of the paper with newer ones they compare
grids, too. A value with * is at an end of its grid, and a better one may lie beyond. SLERP merges in turn, each network with
an equal share."""

STATISTICS = """Statistics: each expert on as many examples of its own cell, which it was not fine-tuned on, repeated where a
cell has fewer than others; Fisher information of the labels of the data, for flows squared gradients of the squared error."""

OBJECTIVES = f"""NP Merge has labels, AdaMerging minimises the entropy of predictions, feature matching the distance of every
layer to that of the cell's expert, but for the head: what a network returns is no node of the graph, and the head keeps equal
shares. Each control fine-tunes all weights by the same objective on the same examples and begins where the learned merge does:
at the average, that of AdaMerging at task arithmetic, which is the row "{ADA_START}"."""

COSTS = """Costs are operations counted on the programs (`npmerge.cost`), statistics for all experts; of learning those at one
rate. With tuning: the merge and one look at all validation data as often as something was tried, learning at all rates with
all looks. Seconds are those of statistics and one merge without compilation, or of the gradients of all steps at one rate; peak
memory is what the compiler plans for a merge or for a gradient, what is kept are coefficients, statistics or weights."""


def protocol(results: Results) -> Iterator[str]:
    """How it was done, line by line."""
    for task in results.tasks:
        yield from _task(task)
    for text in (CELLS, TOGETHER, AUROC, TUNING, STATISTICS):
        yield text.replace("\n", " ")
    learning = results.tasks[0]["learning"]
    yield (
        f"Learned merges and controls: Adam, {learning['steps']} steps of {learning['batch']} examples of each held-in cell "
        f"(for features as many in all, of one cell in turn), its rate falling along a cosine, "
        f"{len(learning['fine_rates'])} rates{told_further(learning['further'])}; every rate stops where its own objective is "
        "lowest on validation examples, and labels choose the rate, or the start, moment 0, where no rate is better. "
        + OBJECTIVES.replace("\n", " ")
    )
    yield COSTS.replace("\n", " ")
    yield (
        "Fewer networks: the first of each order, no two of which begin with the same pair. Held-in cells are those of the "
        "networks merged, other ones for each number: so a merge is compared with the expert of each cell in that cell. "
        "Generalisation cells are always the same. Of several hyper-parameters the first is chosen for each subset, of "
        f"{results.tasks[0]['curve_values'] or 'all'} values of its grid, the others as for all networks."
    )


def _task(task: Row) -> Iterator[str]:
    tuning, base = task["fine_tuning"], task["base"]
    made = {"images": "whether an image shows the category or another one, half of either", "text": "classes",
            "generation": f"images by a flow, of {task['sampling']} steps"}[task["setting"]]  # fmt: skip
    adapted = f" of adapters of rank {task['rank']}" if task["setting"] == "generation" else ""
    yield (
        f"{task['name']}: {DATA[task['data']]}; a cell's task: {made}. Width {task['width']}, {task['layers']} layers; base: "
        f"{base['steps']:,} steps of {base['batch']} on the domain {task['base_domain']}, which is none of the grid's"
        f'{KNOWN[task["setting"]]}; the row "{HOME}" is on test data of that domain; each expert: {tuning["steps"]:,} steps of '
        f"{tuning['batch']}{adapted}, rate {tuning['rate']:g}. All are kept at their best moment on validation data, of "
        f"{base['moments']} for the base and {tuning['moments']} for others; 0 is where they start."
    )
    if task["setting"] == "generation":
        yield (
            f"{task['name']}: {task['samples']} images in each cell are right if a classifier, trained on real images of "
            f'all cells, tells category and style as they were asked for; "{REAL}" is what it makes of real test images. '
            "Validation and tests begin at other noise, but one classifier chooses and judges. The loss of a row is its loss."
        )


def limits(results: Results, preset: str) -> Iterator[str]:
    """Where it ends, line by line."""
    if preset != Preset.paper:
        yield (
            "Tiny networks on little data: the paper's were pretrained on far more than a base domain, and their experts near "
            "the ceiling of their tasks."
        )
    errors = Counter(f"{row['task']}, {row['method']}: {row['error']}" for row in results.rows if row["error"])
    yield from (f"Could not be done: {error}" for error in errors)
    yield f"Every learned merge stands beside its control alone: {', '.join(CONTROLS.values())}."
    if any(task["setting"] == "generation" for task in results.tasks):
        yield "Generation has no AdaMerging, which needs classes, and MaTS there has Gram matrices for its operator."
    absent = [name for name in PAPER if not any(results.of(task["name"], name) for task in results.tasks)]
    if absent:
        yield f"Methods of the paper that are not here: {', '.join(absent)}."
