"""The page of features: a file that a browser opens from disk, without scripts and without anything from elsewhere."""

from collections.abc import Iterator
from html import escape
from itertools import groupby

from experiments.universal_features.results import Results, Row

STYLE = """:root{--paper:#fbfbfa;--ink:#16181d;--soft:#5a6270;--line:#dfe2e7;--heat:217,98,43}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--ink:#eceef2;--soft:#a3abb8;--line:#343a45;--heat:240,131,79}}
body{margin:0 auto;max-width:62rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem;font-size:1.2rem}
h3{font-size:1rem;margin:1rem 0 .3rem}nav a{margin-right:1rem}summary{cursor:pointer}
p,summary small{color:var(--soft)}
pre{margin:.2rem 0 .6rem;padding:.3rem .6rem;border:1px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere;
font:.85rem/1.4 ui-monospace,Consolas,"DejaVu Sans Mono",monospace}
mark{color:inherit;background:none}
"""
HEAT = "".join(f".h{k}{{background:rgba(var(--heat),{k / 9:.2f})}}\n" for k in range(1, 10))


def browsable(results: Results) -> str:
    """All of it, as HTML; text of contexts is escaped."""
    networks = {name: list(rows) for name, rows in groupby(results.contexts, key=lambda row: row["network"])}
    links = "".join(f'<a href="#{_id(name)}">{escape(name)}</a>' for name in networks)
    s = results.settings
    lines = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Features</title>',
        f"<style>{STYLE}{HEAT}</style></head><body><h1>Features of a base, its fine-tunes and their merges</h1>",
        f"<p>Features of sparse autoencoders with the contexts in which they are most active, the stronger the darker. Two "
        f"features are the same where their activations correlate by {s['threshold']:g} or more. A line break is shown as "
        f"&para;.</p><nav>{links}</nav>",
    ]
    for name, rows in networks.items():
        lines.append(f'<section><h2 id="{_id(name)}">{escape(name)}</h2>')
        for group, members in groupby(rows, key=lambda row: row["group"]):
            lines.append(f"<h3>{escape(group)}</h3>")
            lines += [_feature(row) for row in members]
        lines.append("</section>")
    return "\n".join([*lines, "</body></html>", ""])


def _feature(row: Row) -> str:
    contexts = "".join(f"<pre>{_context(*context)}</pre>" for context in row["contexts"])
    first = _context(*row["contexts"][0]) if row["contexts"] else ""
    share = f"{100 * row['fires']:.2f} % of characters"
    return (
        f"<details><summary>feature {row['feature']} <small>{share}</small> <code>{first}</code></summary>{contexts}</details>"
    )


def _context(characters: str, digits: str) -> str:
    return "".join(_runs(characters.replace("\n", "\u00b6"), digits))


def _runs(characters: str, digits: str) -> Iterator[str]:
    """Characters of the same activation together."""
    for digit, several in groupby(zip(characters, digits.rjust(len(characters), "0"), strict=True), key=lambda pair: pair[1]):
        text = escape("".join(character for character, _ in several))
        yield text if digit == "0" else f'<mark class="h{digit}">{text}</mark>'


def _id(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
