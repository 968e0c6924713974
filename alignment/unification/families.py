"""Which atoms may be transformed differently at each place of another one: head_dim inside heads, layers inside a scan.

Let units x[h, d] be transformed by x'[h, e] = sum_d M_h[e, d] x[h, d]. That leaves the function unchanged as M alone would,
provided that every expression in which d stands has h at its side exactly once, so that it is always clear which M_h is
meant: an array without h would need one M for all, a product over two different h would mix them. The index h may be free
itself (then its own map acts after M) or held fixed (the steps of a loop).
"""

from collections.abc import Iterable, Iterator

from alignment.unification.algebra import Terms
from alignment.unification.terms import Case, Prod, Ref, Seq, Term, at, refs

Count = dict[int, tuple[int, int]]  # atom -> how often it stands in an expression, at least and at most
Expression = tuple[Term, ...]


def expressions(terms: Terms) -> set[Expression]:
    """Every expression of a finished walk, resolved and without cases; those that lack their index are closed first."""
    resolved = terms.expressions()
    if _follow(terms, resolved):
        resolved = terms.expressions()
    while sum(_close(terms, expression) for expression in resolved) and (again := terms.expressions()) != resolved:
        resolved = again
    return {plain for expression in resolved for plain in _places(expression)}


def companions(every: Iterable[Expression]) -> dict[int, set[int]]:
    """For each atom, the atoms that stand beside it exactly once in every expression it stands in."""
    found: dict[int, set[int]] = {}

    def visit(term: Term, beside: Count) -> None:
        match term:
            case Ref(atom):
                once = {a for a, count in beside.items() if count == (1, 1) and a != atom}
                found[atom] = found[atom] & once if atom in found else once
            case Seq(parts):
                for part in parts:
                    visit(part, beside)
            case Prod(factors):
                for k, factor in enumerate(factors):
                    visit(factor, _sum([beside, *(_count(f) for j, f in enumerate(factors) if j != k)]))

    for expression in every:
        visit(Prod(expression), {})
    return found


def indices(free: set[int], beside: dict[int, set[int]], *, joined: set[int], fixed: set[int]) -> dict[int, tuple[int, ...]]:
    """The atoms by which each free atom is indexed: those held fixed first, then free ones, the outer before the inner.

    Atoms that are one node with others (`joined`) index nothing. Of two atoms that never stand apart, the first is the index.
    """

    def outer(i: int, a: int) -> bool:
        return i in fixed or (i in free and i not in joined and (a not in beside.get(i, ()) or i < a))

    found = {a: {i for i in beside.get(a, ()) if outer(i, a)} for a in free}
    found = {a: {i for i in by if i in fixed or found[i] <= by} for a, by in found.items()}
    return {a: tuple(sorted(by, key=lambda i: (i not in fixed, len(found.get(i, ())), i))) for a, by in found.items()}


def _count(term: Term) -> Count:
    match term:
        case Ref(atom):
            return {atom: (1, 1)}
        case Seq(parts):
            counts = [_count(p) for p in parts]
            atoms = {a for count in counts for a in count}
            each = {a: [count.get(a, (0, 0)) for count in counts] for a in atoms}
            return {a: (min(low for low, _ in c), max(high for _, high in c)) for a, c in each.items()}
        case Prod(factors):
            return _sum([_count(f) for f in factors])
        case Case(_, options):
            return _count(Seq(options))


def _sum(counts: list[Count]) -> Count:
    total: Count = {}
    for count in counts:
        for atom, (low, high) in count.items():
            least, most = total.get(atom, (0, 0))
            total[atom] = least + low, most + high
    return total


def cases_in(term: Term) -> Iterator[Case]:
    """Every case inside a term, the outer before the inner."""
    match term:
        case Case(_, options):
            yield term
            for option in options:
                yield from cases_in(option)
        case Seq(children) | Prod(children):
            for child in children:
                yield from cases_in(child)


def _follow(terms: Terms, resolved: Iterable[Expression]) -> bool:
    """Unify the options of a case that nothing was ever done to (unused rows of a table) with one that is used."""
    cases = {case for expression in resolved for term in expression for case in cases_in(term)}
    if not cases:
        return False
    met = {ref.atom for expression in resolved for term in expression if not any(cases_in(term)) for ref in refs(term)}
    for case in cases:
        used = [option for option in case.options if any(ref.atom in met for ref in refs(option))]
        for option in case.options:
            if used and option not in used:
                terms.unify(used[0], option)
    return True


def _close(terms: Terms, expression: Expression) -> bool:
    """Unify all options of a case where its index does not stand beside it. Whether there was such a case."""
    present = _count(Prod(expression))
    cases = [case for term in expression for case in cases_in(term)]
    lost = [case for case in cases if present.get(case.index) != (1, 1) or terms.moved(case.index)]
    for case in lost:
        for option in case.options[1:]:
            terms.unify(case.options[0], option)
    return bool(lost)


def _places(expression: Expression) -> Iterator[Expression]:
    """The expression at each place of the indices of its cases."""
    case = next((case for term in expression for case in cases_in(term)), None)
    if case is None:
        yield expression
        return
    for place in range(len(case.options)):
        yield from _places(tuple(at(t, case.index, place) for t in expression))
