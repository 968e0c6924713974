"""How results depend on the number of units that they were summed over: the power of it that they grow with."""

import math
from collections.abc import Mapping
from dataclasses import replace

from alignment.resizing.sizes import Extent
from alignment.resizing.values import Equation, Trail

Powers = Mapping[Extent, float | None]
POWERS = {"sqrt": 1 / 2, "rsqrt": -1 / 2, "cbrt": 1 / 3, "square": 2.0}
KEEPS = {  # layouts, sums with what does not depend on it (an epsilon), choices
    *("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "split", "unstack", "concatenate", "stack", "pad", "rev"),
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "stop_gradient", "neg", "abs", "real", "name"),
    *("add", "sub", "add_any", "max", "min", "clamp", "select_n", "reduce_max", "reduce_min", "optimization_barrier"),
}


def trail(e: Equation) -> Trail:
    """The trail of the results of an equation."""
    name, trails = e.eqn.primitive.name, [known.trail for known in e.ins]
    if name in ("dot_general", "conv_general_dilated"):
        return _contracted(e)
    weighted, paired, doubts = (frozenset().union(*(getattr(t, f) for t in trails)) for f in ("weighted", "paired", "doubts"))
    kept = Trail({}, weighted, paired, doubts)
    powers = [t.powers for t in trails]
    if name == "mul":
        return replace(kept, powers=_times(*powers))
    if name == "div":
        return replace(kept, powers=_times(powers[0], raised(powers[1], -1)))
    if name in ("reduce_sum", "reduce_window_sum"):
        return replace(kept, powers=_times(powers[0], summed(e)))
    if name in KEEPS:
        return replace(kept, powers=_either(*(powers[1:] if name == "select_n" else powers)))
    exponent = _exponent(e)
    every = _either(*powers)
    return Trail(raised(every, exponent) if exponent is not None else dict.fromkeys(every), doubts=doubts)


def raised(powers: Powers, exponent: float) -> Powers:
    """The powers of a power."""
    return {extent: None if p is None else p * exponent for extent, p in powers.items()}


def summed(e: Equation) -> dict[Extent, float | None]:
    """The axes that an equation sums over: all units alike, or the squares of all of them."""
    if e.eqn.primitive.name == "reduce_sum":
        value = e.ins[0].value
        return _times(*({e.sizes.extent(value.axes[d], value.shape[d]): 1.0} for d in e.eqn.params["axes"]))
    if e.eqn.primitive.name == "reduce_window_sum":
        window = math.prod(e.eqn.params["window_dimensions"])
        return {Extent(window, window): 1.0}
    if e.eqn.primitive.name != "dot_general":
        return {}
    same = e.eqn.invars[0] is e.eqn.invars[1]
    return _times(*({extent: 1.0} for extent, uniform in _dotted(e) if uniform or same))


def _dotted(e: Equation) -> list[tuple[Extent, bool]]:
    """The axes that a dot product sums over, and whether one of the operands is the same all along it."""
    (a, b), pairs = (known.value for known in e.ins), zip(*e.eqn.params["dimension_numbers"][0], strict=True)
    terms = [(a.axes[i], b.axes[j], a.shape[i]) for i, j in pairs]
    return [(e.sizes.extent(s or t, n), s is None or t is None) for s, t, n in terms]


def _contracted(e: Equation) -> Trail:
    counted = summed(e)
    if e.eqn.primitive.name == "dot_general":
        others = frozenset(extent for extent, _ in _dotted(e) if extent not in counted)
    else:
        others = _window(e)
    powers = _times(counted, *(known.trail.powers for known in e.ins))
    if not others:
        return Trail(powers, doubts=frozenset().union(*(known.trail.doubts for known in e.ins)))
    if all(known.value.data for known in e.ins):  # queries with keys
        return Trail(counted, paired=others)
    return Trail({extent: p for extent, p in powers.items() if p}, weighted=others)  # linear: sums stay sums


def _window(e: Equation) -> frozenset[Extent]:
    """The channels that a convolution sums over, alone and with the places of its window."""
    kernel, spec = e.ins[1].value, e.eqn.params["dimension_numbers"].rhs_spec
    channels = e.sizes.extent(kernel.axes[spec[1]], kernel.shape[spec[1]])
    places = math.prod(kernel.shape[d] for d in spec[2:])
    whole = channels._replace(old=channels.old * places, new=channels.new * places)
    return frozenset((channels, whole))


def _exponent(e: Equation) -> float | None:
    name = e.eqn.primitive.name
    if name == "integer_pow":
        return float(e.eqn.params["y"])
    return e.ins[1].value.constant if name == "pow" else POWERS.get(name)


def _times(*factors: Powers) -> dict[Extent, float | None]:
    found: dict[Extent, float | None] = {}
    for extent, p in (item for powers in factors for item in powers.items()):
        before = found.get(extent, 0.0)
        found[extent] = None if before is None or p is None else before + p
    return found


def _either(*options: Powers) -> dict[Extent, float | None]:
    found: dict[Extent, float | None] = {}
    for extent, p in (item for powers in options for item in powers.items()):
        found[extent] = p if found.get(extent, p) == p else None
    return found
