"""What the site has beside docs/: pages of the repository, the reference from docstrings, the catalogue, the notebooks.

MkDocs calls `on_files` once, which adds pages, and `on_page_markdown` for each page, which turns links between files of the
repository, as GitHub shows them, into links between pages of the site.
"""

import importlib
import inspect
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("alignment", "npmerge.objectives", "npmerge.checkpoint", "npmerge.models", "npmerge")
"""Those with a page of reference. A name of several of them is described on the page of the first."""
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")
FOLDERS = ("npmerge/recipe", "npmerge/methods", "alignment/methods", "experiments")
LINK = re.compile(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not written by hand in docs/."""
    for path in _carried():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        page = tutorial(json.loads(notebook.read_text(encoding="utf-8")), notebook.name)
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=page))
    for package, text in reference().items():
        files.append(File.generated(config, f"reference/{package}.md", content=text))
    files.append(File.generated(config, "catalogue.md", content=catalogue()))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Links between files of the repository become links of the site; to files that it lacks their text is left."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if (ROOT / uri).exists() else f"docs/{uri}")

    def relinked(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(folder, link))
        if ":" in link or not (ROOT / target).is_file():
            return found[0]
        place = re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            return text
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{anchor})"

    return LINK.sub(relinked, markdown)


def _carried() -> list[str]:
    """Files of the repository that are pages or figures of the site, under the path that they have."""
    found = [ROOT / name for name in TEXTS]
    for folder in FOLDERS:
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".md", ".png")]
    return [path.relative_to(ROOT).as_posix() for path in found if path.is_file()]


def tutorial(notebook: Mapping[str, Any], name: str) -> str:
    """A notebook as a page: its words, and its cells as blocks of Python."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *others = cells
    return "\n\n".join([title, f"<a href='{name}' download>The notebook</a>.", *others]) + "\n"


def homes() -> dict[str, dict[str, object]]:
    """For each package the public names that its page describes."""
    found: dict[str, dict[str, object]] = {}
    taken: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = {name: getattr(module, name) for name in module.__all__ if not name.startswith("_")}
        found[package] = {name: x for name, x in names.items() if id(x) not in taken and not inspect.ismodule(x)}
        taken |= {id(x) for x in found[package].values()}
    return found


def place(package: str, name: str, thing: object) -> str:
    """The anchor of a public name: where a module is called alike, that of its home."""
    path = ROOT.joinpath(*package.split("."), name)
    shadowed = path.is_dir() or path.with_suffix(".py").is_file()
    return f"{thing.__module__}.{name}" if shadowed else f"{package}.{name}"


def reference() -> dict[str, str]:
    """A page for each package: its names by the rooms in which they live."""
    found = homes()
    places = {id(x): place(package, name, x) for package, names in found.items() for name, x in names.items()}
    pages = {}
    for package, names in found.items():
        module = importlib.import_module(package)
        text = [f"# {package}", inspect.getdoc(module) or ""]
        for room, members in _by_room(package, names):
            text += [f"## {room}", *(f"::: {place(package, name, names[name])}" for name in members)]
        others = {name: places.get(id(getattr(module, name))) for name in module.__all__ if name not in names}
        if links := [f"[{name}][{where}]" for name, where in sorted(others.items()) if where]:
            text += ["## Also here", ", ".join(links)]
        pages[package] = "\n\n".join(text) + "\n"
    return pages


def _by_room(package: str, names: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """The names of a package by the folder that defines them, those of its own files first."""
    rooms: dict[str, list[str]] = {}
    for name, x in names.items():
        parts = str(getattr(x, "__module__", package)).removeprefix(f"{package}.").split(".")
        room = f"{package}.{parts[0]}" if ROOT.joinpath(*package.split("."), parts[0]).is_dir() else ""
        rooms.setdefault(room, []).append(name)
    for room in sorted(rooms):
        yield room or "Core", sorted(rooms[room], key=str.lower)


def catalogue() -> str:
    """A page with every method and alignment, its paper and where it was measured."""
    import alignment
    import npmerge as nm

    learned = [nm.np_merge, nm.ada_merging, nm.dam]
    text = [
        "---\nhide: [toc]\n---",
        "# Catalogue",
        "Every method, its paper and the pages of results that it is on. Names lead to formulas, parameters and an example.",
    ]
    for title, package, members in (
        ("Merges", "npmerge", nm.METHODS),
        ("Learned merges", "npmerge", learned),
        ("Alignments", "alignment", alignment.ALIGNMENTS),
    ):
        sources = papers(f"{package}/methods/README.md")
        rows = ["| | what | paper | measured |", "|---|---|---|---|"]
        rows += [_row(package, x, sources[x.__name__]) for x in members]
        text += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(text) + "\n"


def _row(package: str, thing: Any, paper: str) -> str:
    summary = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    pages = ", ".join(f"[{name.replace('_', ' ')}](experiments/results/{name}/README.md)" for name in measured(thing.__name__))
    return (
        f"| [`{thing.__name__}`](reference/{package}.md#{package}.{thing.__name__}) | {_escaped(summary)} | {paper} | {pages} |"
    )


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def papers(page: str) -> dict[str, str]:
    """The sources in a list of them, by the name of the method, with links to arXiv."""
    section = (ROOT / page).read_text(encoding="utf-8").split("## Sources")[1]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M)
    linked = ((names, re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)) for names, source in rows)
    return {name: source for names, source in linked for name in re.findall(r"`(\w+)`", names)}


def measured(name: str) -> list[str]:
    """The experiments with a page of results that name a method, in their program or on their page."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    pattern = re.compile(rf"\b(?:{name}|{snake}|{snake.replace('_', ' ')})\b" if "_" in snake else rf"\b{name}\b|`{snake}`")
    found = []
    for page in sorted((ROOT / "experiments" / "results").glob("*/README.md")):
        texts = [page, *(ROOT / "experiments").glob(f"{page.parent.name}*.py")]
        texts += [ROOT / "npmerge" / "demo" / "pipeline.py"] if page.parent.name == "demo" else []
        if any(pattern.search(path.read_text(encoding="utf-8")) for path in texts):
            found.append(page.parent.name)
    return found
