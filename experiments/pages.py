"""Pages written anew from the rows that are there: `python -m experiments.pages`. A test compares them with those committed."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.cca_merge.page import page as cca_merge
from experiments.compatible_specialization.page import page as compatible_specialization
from experiments.compositional.page import page as compositional
from experiments.landscape.page import page as landscape
from experiments.np_merge.page import page as np_merge
from experiments.overtraining.page import page as overtraining
from experiments.pleas.page import page as pleas
from experiments.scaling.page import page as scaling
from experiments.strangers.page import page as strangers
from experiments.universal_features.page import page as universal_features

RESULTS = Path(__file__).parent / "results"

PAGES: Mapping[str, Callable[[Path], str]] = {
    "cca_merge": cca_merge,
    "compatible_specialization": compatible_specialization,
    "compositional": compositional,
    "landscape": landscape,
    "np_merge": np_merge,
    "pleas": pleas,
    "overtraining": overtraining,
    "scaling": scaling,
    "strangers": strangers,
    "universal_features": universal_features,
}
"""Experiments whose page is a function of the files in their folder alone."""


def main() -> None:
    """Write the page of each experiment that has rows."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, page in PAGES.items():
        if (RESULTS / name / "rows.csv").is_file():
            (RESULTS / name / "README.md").write_text(page(RESULTS / name), encoding="utf-8")


if __name__ == "__main__":
    main()
