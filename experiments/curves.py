"""Lines of figures whose points are means over seeds."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from npmerge.reports.drawing import Curve


def over_seeds(label: str, values: Mapping[int, Sequence[float]], *, control: bool = False) -> Iterator[Curve]:
    """A curve of means with deviations (n - 1, as on pages); none where nothing was measured.

    Args:
        label: of it.
        values: of all seeds, by place on the horizontal axis.
        control: whether it is drawn dashed.
    """
    known = {x: found for x, found in values.items() if found}
    if known:
        spread = [float(np.std(found, ddof=1)) if len(found) > 1 else 0.0 for found in known.values()]
        yield Curve(label, list(known), [float(np.mean(found)) for found in known.values()], spread, control)
