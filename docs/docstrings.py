"""An extension of Griffe, which reads docstrings for the reference: what ours have otherwise than Markdown expects."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """The section `Example:` is what Griffe knows as `Examples:`; inner products `<A, B>` are no HTML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring."""
        if obj.docstring:
            words, *example = re.split(r"^Example:$", obj.docstring.value, maxsplit=1, flags=re.M)
            words = re.sub(r"(`[^`]*`)|<(?=[A-Za-z])", lambda found: found[1] or "&lt;", words)
            obj.docstring.value = "Examples:".join([words, *example])
