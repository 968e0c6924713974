"""What stands at the top of the report of a merge: a sentence or two, and the result in numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from npmerge.commands.report_judged import interval
from npmerge.learning import page as learning
from npmerge.reports.intervals import Interval
from npmerge.reports.judgements import BASE, BEST, most_accurate
from npmerge.reports.judgements import counted as counted_examples
from npmerge.reports.numbers import counted, nats, number, plural
from npmerge.reports.page import Headline

RESULT, AVERAGE = "merged", "plain average"

MOST_NAMES = 4
"""Models up to which the first line names them."""

Content = Mapping[str, Any]


def lead(content: Content) -> str:
    """What was done, in a sentence, and what came of it, in another."""
    merge = content["merge"]
    models = [x["name"] for x in merge["models"] if "base" not in x.get("role", "").split(", ")[0]]
    how = [f"by {merge['method']}", *([f"aligned by {merge['aligned_by']}"] if merge["aligned_by"] else [])]
    how += ["with learned coefficients"] if merge["learned"] else []
    called = listed(models) if len(models) <= MOST_NAMES else plural(len(models), "model")
    first = f"{called} in one network, {', '.join(how)}."
    found = content["evaluation"]
    return first if found is None else f"{first} {_verdict(found)}"


def _verdict(found: Content) -> str:
    """Whether the result is better than the average and the best of what went in, as far as the examples tell."""
    rows = found["rows"]
    best = _best(found)
    others = {"their plain average": AVERAGE, f"{best}, {BEST}": best}
    said = [_compared(interval(rows[name]["gain"]), called) for called, name in others.items()]
    return f"It is {said[0]}, and {said[1]}."


def _best(found: Content) -> str:
    """The best of models and base."""
    inputs = [name for name in (*found["models"], BASE) if name in found["rows"]]
    return most_accurate({name: found["rows"][name]["accuracy"]["value"] for name in inputs})


def _compared(gain: Interval, called: str) -> str:
    """In points, with the interval if it does not hold zero."""
    if not gain.value:
        return f"exactly as accurate as {called}"
    amount, how = f"{100 * abs(gain.value):.1f} points", "more" if gain.value > 0 else "less"
    if gain.low <= 0 <= gain.high:
        return f"{amount} {how} accurate than {called}, which may be chance"
    low, high = sorted((abs(gain.low), abs(gain.high)))
    return f"{amount} ({100 * low:.1f} to {100 * high:.1f}) {how} accurate than {called}"


def headlines(content: Content, history: Mapping[str, Any] | None) -> tuple[Headline, ...]:
    """The result in numbers: on examples, or else in how far it is from what it was made of."""
    if content["evaluation"] is not None:
        return _measured(content["evaluation"])
    if history is not None and (found := learning.headlines(history)):
        return found
    merge, near = content["merge"], content["nearness"]["rows"] if content["nearness"] else []
    of = "of the norm of the result"
    distances = [Headline(f"Distance to {x['models'][0]}", number(x["whole"]["distance"]), of) for x in near[:3]]
    return (Headline("Parameters", counted(merge["parameters"]), plural(merge["tensors"], "tensor")), *distances)


def _measured(found: Content) -> tuple[Headline, ...]:
    rows = found["rows"]
    result, average = rows[RESULT], rows[AVERAGE]
    best = _best(found)
    accuracy, gain = interval(result["accuracy"]), interval(average["gain"])
    on = f"95 % interval on {counted_examples(found['examples'], found['predictions'], 'held-out' * found['held_out'])}"
    before, after = rows[best]["accuracy"]["value"], accuracy.value
    return (
        Headline(
            "Accuracy, best input → merged",
            f"{100 * before:.1f} → {100 * after:.1f} %",
            f"merged {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %, {on}; {BEST} is {best}",
        ),
        Headline(
            "Gain over the plain average",
            f"{100 * gain.value:+.1f} points",
            f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}, paired on the same examples",
        ),
        Headline(
            "Loss, plain average → merged",
            f"{nats(average['loss']['value'])} → {nats(result['loss']['value'])}",
            "cross entropy in nats",
        ),
    )


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
