"""`npmerge report`: what was merged and what came of it, from the folder of the merge and, where they are there, its inputs."""

import json
from collections.abc import Mapping
from typing import Any

from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.partial import RECORD
from npmerge.commands import compare_page, report_page
from npmerge.commands.report_content import content_of
from npmerge.commands.report_folder import REPORT_JSON, Request, read_merged
from npmerge.reports.folder import FIGURES, PAGES, OutputFolder, write_page
from npmerge.reports.page import Page
from npmerge.reports.progress import phases
from npmerge.reports.tables import json_text

SUMMARY = "summary.json"
"""What the pages of align and compare are built from."""


def run_report(request: Request, taken: Mapping[str, Any] | None = None) -> list[str]:
    """Write the report, and say what it says, a line each.

    Args:
        request: of which folder.
        taken: what making the merge took, when it has just been made.

    Raises:
        ValueError: no such folder, one that is none of a merge, an alignment or a comparison, and data that do not fit.
    """
    folder = request.folder
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a file: expected the folder of a merge" if folder.exists() else f"{folder}: no such folder"
        )
    for path in (request.data, request.base):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    if (folder / RECORD).is_file():
        return _of_merge(request, taken)
    if (folder / SUMMARY).is_file():
        return _again(request)
    raise ValueError(f"{folder} holds neither the {RECORD} of a merge nor the {SUMMARY} of npmerge align or compare")


def _of_merge(request: Request, taken: Mapping[str, Any] | None) -> list[str]:
    merged = read_merged(request.folder)
    with phases(quiet=request.quiet) as advance:
        content = content_of(request, merged, taken, advance)
    text = json_text(content)
    with OutputFolder(request.place, force=True, own=FIGURES) as folder:
        (folder / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
        kept = json.loads(text)
        write_page(folder, report_page.page(kept, merged.history))
    return [*report_page.told(kept), f"written to {request.place}: {', '.join((*PAGES, REPORT_JSON))}"]


def _again(request: Request) -> list[str]:
    """The page of an alignment or a comparison, from what it has kept."""
    content = read_object(request.folder / SUMMARY)
    given = [name for name, value in (("--data", request.data), ("--base", request.base)) if value is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: the report of {request.folder} is built from its {SUMMARY}, nothing is measured"
        )
    try:
        page = _page_of(content)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{request.folder / SUMMARY} is not of npmerge align or compare, or is damaged: {error!r}") from None
    with OutputFolder(request.place, force=True) as folder:
        write_page(folder, page)
    return [f"written to {request.place}: {', '.join(PAGES)}"]


def _page_of(content: Mapping[str, Any]) -> Page:
    if "reference" in content:
        return compare_page.page(content)
    from npmerge.commands import align_page, fusion_page, pleas_page  # import JAX

    kinds = {"budget": pleas_page.page, "width": fusion_page.page, "approximate": align_page.page}
    return kinds[next((key for key in kinds if key in content), "approximate")](content)
