"""What was measured as text: Markdown tables, and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def json_text(content: Any) -> str:
    """JSON of what was measured; null stands for numbers that are not finite, which JSON has not."""
    return json.dumps(_finite(content), indent=1, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(x) for key, x in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(x) for x in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
