"""What papers claim and what came out, on one page: `python -m experiments.gallery` writes it from the rows that are there."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from experiments.cca_merge.findings import claims as cca_merge
from experiments.cca_merge.results import read as read_cca_merge
from experiments.claims import MARKING, MARKS, Marked, table
from experiments.compatible_specialization.findings import claims as compatible_specialization
from experiments.compatible_specialization.results import read as read_compatible_specialization
from experiments.compositional.findings import claims as compositional
from experiments.compositional.results import read as read_compositional
from experiments.landscape.findings import claims as landscape
from experiments.landscape.results import read as read_landscape
from experiments.np_merge.findings import claims as np_merge
from experiments.np_merge.page import read as read_np_merge
from experiments.overtraining.findings import claims as overtraining
from experiments.overtraining.results import read as read_overtraining
from experiments.pages import RESULTS
from experiments.pleas.findings import claims as pleas
from experiments.pleas.results import read as read_pleas
from experiments.scaling.findings import claims as scaling
from experiments.scaling.results import read as read_scaling
from experiments.universal_features.findings import claims as universal_features
from experiments.universal_features.results import read as read_universal_features

GALLERY: Mapping[str, Callable[[Path], Iterable[Marked]]] = {
    "np_merge": lambda folder: np_merge(read_np_merge(folder)),
    "cca_merge": lambda folder: cca_merge(read_cca_merge(folder)),
    "pleas": lambda folder: pleas(read_pleas(folder)),
    "landscape": lambda folder: landscape(read_landscape(folder)),
    "compositional": lambda folder: compositional(read_compositional(folder)),
    "compatible_specialization": lambda folder: compatible_specialization(read_compatible_specialization(folder)),
    "universal_features": lambda folder: universal_features(read_universal_features(folder)),
    "overtraining": lambda folder: overtraining(read_overtraining(folder)),
    "scaling": lambda folder: scaling(read_scaling(folder)),
}
"""Experiments that say of each claim what came of it."""


def gallery(results: Path) -> str:
    """The page, of the experiments that have rows in a folder; every mark comes from their rows."""
    found = {name: list(claims(results / name)) for name, claims in GALLERY.items() if (results / name / "rows.csv").is_file()}
    counts = Counter(marked.mark for claims in found.values() for marked in claims)
    lines = ["# Claims", "", MARKING, ""]
    lines += ["Of all: " + ", ".join(f"{counts[mark]} {mark}" for mark in MARKS if counts[mark]) + ".", ""] if counts else []
    for name, claims in found.items():
        lines += [f"## [{name}](../{name}/README.md)", "", *table(claims), ""]
    missing = [name for name in GALLERY if name not in found]
    lines += [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    (RESULTS / "claims").mkdir(exist_ok=True)
    (RESULTS / "claims" / "README.md").write_text(gallery(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
