"""What `npmerge align --method zipit` and `transport` say: their summary, their page and their words."""

from collections.abc import Mapping
from typing import Any

from npmerge.commands import pages
from npmerge.commands.align_requests import MERGED, FusionRequest
from npmerge.commands.align_run import Parents
from npmerge.reports.folder import REPORT
from npmerge.reports.page import Headline, Page, Points, Warnings, filled, section, table


def summary(request: FusionRequest, parents: Parents) -> dict[str, Any]:
    """What `summary.json` says of the request; `written` lists the files."""
    return pages.summary(request, parents) | {
        "width": request.width,
        "written": [MERGED, *REPORT, *pages.drawn_accuracy(parents.data)],
    }


def provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of the merged checkpoint keeps."""
    return pages.provenance(content, "width")


def page(content: Mapping[str, Any]) -> Page:
    """The report, from the content of `summary.json` alone."""
    files = [source["file"] for source in content["sources"]]
    worth = section("", None)
    if content["networks"]:
        worth = section("What it is worth", pages.worth(content["networks"]), pages.accuracy_figure(content))
    rows = [("node", *files, "merged"), *((row["node"], *map(str, row["old"]), str(row["new"])) for row in content["nodes"])]
    sections = (
        section("", Points(tuple(_notes(content))), Warnings(tuple(content["warnings"]))),
        worth,
        section("Units of every node", table(rows)),
    )
    return Page(
        f"npmerge align: {', '.join(files)} in one network by {content['method']}",
        filled(*sections, pages.made_from(content)),
        headlines=_headlines(content),
        foot=pages.versions(content),
    )


def _headlines(content: Mapping[str, Any]) -> tuple[Headline, ...]:
    size = Headline("Operations", f"{content['operations']:.3f} times", f"those of {content['sources'][0]['file']}")
    return (*pages.accuracy_headline(content), size, Headline("Parameters", f"{content['parameters']:.3f} times", size.note))


def told(content: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""
    kind, width = content["architecture"]["class"], content["width"]
    lines = [f"{len(content['sources'])} x {kind}, {content['method']} at {width:g} times the width of the first"]
    return [*lines, *pages.measured(content["networks"]), *(f"- {line}" for line in [*_notes(content), *content["warnings"]])]


def _notes(content: Mapping[str, Any]) -> list[str]:
    first, data = content["sources"][0]["file"], content["data"]
    notes = [
        f"{content['operations']:.3f} times the operations and {content['parameters']:.3f} times the parameters of {first}.",
        f"A random element of every node's group moves the outputs of {first} by {content['verify']:.1e} of the largest: below "
        "1e-5 the traced graph is right. The merge itself changes what the networks compute.",
    ]
    by = f"their activations on {data['examples']} examples of {data['file']}" if data else "their incoming weights"
    notes.append(f"Units compared by {by}.")
    if content["batch_statistics"]:
        notes.append(
            f"Statistics of BatchNorm were re-estimated on {data['file']}."
            if data
            else "Running statistics are averages: re-estimate them from data before use."
        )
    if content["networks"]:
        notes.append("Accuracy and loss are on the examples that the units were compared on: keep others for a test.")
    elif data:
        notes.append("No labels in the data: accuracy and loss cannot be measured.")
    return notes
