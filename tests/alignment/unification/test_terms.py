"""The algebra of axis terms, by hand."""

import pytest

from alignment.unification.algebra import MOST_CASES, SEPARATED, Terms
from alignment.unification.families import companions, expressions, indices
from alignment.unification.terms import UNIT, Case, Group, Prod, Ref, Seq, at, dual, product, refs, sequence


@pytest.fixture
def terms():
    return Terms()


def test_unifying_two_atoms_intersects_groups_and_joins_pins(terms):
    a, b = terms.fresh(4, group=Group.SCALE), terms.fresh(4, group=Group.ORTHOGONAL)
    terms.pin(b, "input")
    terms.unify(a, b)
    assert terms.resolve(a) == terms.resolve(b)
    assert terms.group(terms.resolve(a).atom) == Group.PERMUTATION
    assert set(terms.pins(a)) == {"input"}


def test_a_pin_that_comes_after_unification_reaches_both(terms):
    a, b = terms.fresh(4), terms.fresh(4)
    terms.unify(a, b)
    terms.pin(a, "output")
    assert set(terms.pins(b)) == {"output"}


def test_meeting_its_own_dual_leaves_the_orthogonal_group(terms):
    a = terms.fresh(4)
    terms.unify(a, dual(a))
    assert terms.group(a.atom) == Group.ORTHOGONAL
    assert not terms.pins(a)


def test_duals_are_carried_through_bindings(terms):
    a, b, c = (terms.fresh(3) for _ in range(3))
    terms.unify(a, dual(b))
    terms.unify(b, dual(c))
    assert terms.resolve(a) == terms.resolve(c)
    assert terms.resolve(b) == dual(terms.resolve(c))


def test_sequences_with_different_cuts_are_cut_at_all_of_them(terms):
    a, b, c, d = terms.fresh(2), terms.fresh(6), terms.fresh(5), terms.fresh(3)
    terms.unify(Seq((a, b)), Seq((c, d)))
    whole = terms.resolve(Seq((a, b)))
    assert [terms.size(p) for p in whole.parts] == [2, 3, 3]
    assert whole == terms.resolve(Seq((c, d)))
    assert len({r.atom for r in refs(whole)}) == 3


def test_products_with_different_factors_are_refined(terms):
    a, b, c, d = terms.fresh(2), terms.fresh(6), terms.fresh(4), terms.fresh(3)
    terms.unify(Prod((a, b)), Prod((c, d)))
    whole = terms.resolve(Prod((a, b)))
    assert [terms.size(f) for f in whole.factors] == [2, 2, 3]
    assert whole == terms.resolve(Prod((c, d)))


def test_incommensurable_products_are_pinned_not_guessed(terms):
    a, b, c, d = terms.fresh(4), terms.fresh(3), terms.fresh(3), terms.fresh(4)
    terms.unify(Prod((a, b)), Prod((c, d)))
    assert all(set(terms.pins(t)) == {"axes of incompatible structure meet"} for t in (a, b, c, d))


def test_cut_of_an_atom_keeps_its_group_and_pins(terms):
    a = terms.fresh(5, group=Group.SCALE, pin="input")
    left, right = terms.cut(a, [2, 3])
    assert terms.resolve(a) == Seq((left, right))
    for piece, size in ((left, 2), (right, 3)):
        assert (terms.size(piece), terms.group(piece.atom), set(terms.pins(piece))) == (size, Group.SCALE, {"input"})


def test_cut_of_a_dual_gives_duals(terms):
    a = terms.fresh(5)
    left, right = terms.cut(dual(a), [2, 3])
    assert terms.resolve(a) == Seq((dual(left), dual(right)))


def test_cut_of_a_product_only_along_its_outer_factor(terms):
    a, b = terms.fresh(4), terms.fresh(3)
    assert terms.cut(Prod((a, b)), [5, 7]) is None
    first, second = terms.cut(Prod((a, b)), [3, 9])
    assert first == b  # one copy of the inner factor
    assert terms.size(second) == 9
    assert second.factors[1] == b


def test_cut_regroups_parts_and_cuts_those_that_straddle(terms):
    a, b = terms.fresh(4), terms.fresh(4)
    pieces = terms.cut(Seq((a, b)), [3, 5])
    assert [terms.size(p) for p in pieces] == [3, 5]
    assert terms.resolve(b) == b  # the second part is whole inside the second piece
    assert pieces[1].parts[1] == b


def test_factor_splits_an_atom_and_passes_units_through(terms):
    a = terms.fresh(6)
    x, one, y = terms.factor(a, [2, 1, 3])
    assert one == UNIT
    assert terms.resolve(a) == Prod((x, y))


def test_factor_of_a_sequence_is_refused(terms):
    assert terms.factor(Seq((terms.fresh(2), terms.fresh(4))), [2, 3]) is None


def test_product_meets_sequence_as_copies_of_its_inner_factor(terms):
    a, b, c, d = terms.fresh(2), terms.fresh(3), terms.fresh(3), terms.fresh(3)
    terms.unify(Prod((a, b)), Seq((c, d)))
    assert set(terms.pins(a)) == {"a product meets a sequence of segments"}
    assert not terms.pins(b)
    assert terms.resolve(c) == terms.resolve(d) == terms.resolve(b)


def test_normal_forms():
    a, b, c = Ref(0), Ref(1), Ref(2)
    assert product([a, UNIT, Prod((b, c))]) == Prod((a, b, c))
    assert product([a, UNIT]) == a
    assert product([]) == UNIT
    assert sequence([a, Seq((b, c))]) == Seq((a, b, c))
    assert dual(dual(Prod((a, Seq((b, c)))))) == Prod((a, Seq((b, c))))


def test_axes_of_size_one_need_no_atom(terms):
    assert terms.fresh(1) == UNIT
    assert terms.size(UNIT) == 1


def test_pieces_inherit_what_their_atom_is():
    """Neither must an atom stay alone nor have its places moved, unless that is said."""
    for options in ({}, {"alone": True}, {"moved": True}):
        terms = Terms()
        a, b = terms.fresh(6, **options), terms.fresh(6, **options)
        assert [terms.alone(a.atom), terms.moved(a.atom)] == ["alone" in options, "moved" in options]
        pieces = [*terms.cut(a, [2, 4]), *terms.factor(b, [2, 3])]
        assert {(terms.alone(p.atom), terms.moved(p.atom)) for p in pieces} == {("alone" in options, "moved" in options)}


def test_every_reason_keeps_the_source_of_the_equation_that_gave_it(terms):
    """Through binding and refinement alike, and of two equations with one reason the first."""
    a, b = terms.fresh(4), terms.fresh(4)
    for terms.where, term, reason in (("line 1", a, "input"), ("line 2", b, "output"), ("line 3", b, "input")):
        terms.pin(term, reason)
    terms.where = "line 4"
    terms.unify(a, b)
    assert terms.pins(a) == terms.pins(b)
    assert terms.pins(a)["output"] == "line 2"
    assert terms.pins(a)["input"] in ("line 1", "line 3")
    (piece, _) = terms.cut(a, [1, 3])
    (_, piece) = terms.cut(b, [1, 3])
    assert terms.pins(piece) == terms.pins(a)


# -------------------------------------------------------------------------------------------------------------- cases


def stacked(terms, size, *, index=None, **options):
    """A pinned axis of three and a term that is another atom at each of its places."""
    index = index or terms.fresh(3, pin=SEPARATED)
    return index, Case(index.atom, tuple(terms.fresh(size, **options) for _ in range(3)))


def test_cases_of_one_index_are_unified_place_by_place(terms):
    index, a = stacked(terms, 4)
    _, b = stacked(terms, 4, index=index)
    terms.unify(a, b)
    assert terms.resolve(a) == terms.resolve(b)
    assert len({r.atom for r in refs(terms.resolve(a))}) == 3


@pytest.mark.parametrize("whole", [Seq, Prod])
def test_options_are_one_where_they_are_the_same_up_to_what_their_group_does_not_see(terms, whole):
    """A permutation is its own dual, a scaling is not; what differs in one factor differs."""
    index = terms.fresh(2, pin=SEPARATED)
    a, b, c, scaled = (*(terms.fresh(2, group=Group.PERMUTATION) for _ in range(3)), terms.fresh(2, group=Group.SCALE))
    for one, other, same in ((b, dual(b), True), (scaled, dual(scaled), False), (b, c, False)):
        case = Case(index.atom, (whole((a, one)), whole((a, other))))
        assert terms.resolve(case) == (whole((a, one)) if same else case)
        nested = Case(index.atom, (Case(a.atom, (one, c)), Case(a.atom, (other, c))))
        assert (terms.resolve(nested) == terms.resolve(nested.options[0])) == same


def test_cases_of_indices_that_turn_out_to_be_one_are_unified_place_by_place(terms):
    one, a = stacked(terms, 4)
    another, b = stacked(terms, 4)
    terms.unify(one, another)
    terms.unify(a, b)
    assert terms.resolve(a) == terms.resolve(b)
    assert len({r.atom for r in refs(terms.resolve(a))}) == 3


@pytest.mark.parametrize("swap", [False, True])
def test_a_case_that_meets_a_structured_axis_is_the_same_everywhere(terms, swap):
    """Sequences and products cannot depend on the index, so all places are one."""
    a, b = terms.fresh(2), terms.fresh(2)
    for whole in (Seq((a, b)), Prod((a, b))):
        _, case = stacked(terms, 4)
        terms.unify(*((whole, case) if swap else (case, whole)))
        assert terms.resolve(case) == terms.resolve(whole)


def test_cases_of_two_indices_that_meet_lose_one_and_where_that_is_missing_both(terms):
    one, a = stacked(terms, 4)
    another, b = stacked(terms, 4)
    terms.unify(a, b)
    assert terms.resolve(a) == terms.resolve(b)
    assert len({r.atom for r in refs(terms.resolve(a))}) == 3
    for index in (one, another):
        terms.together([index, a])
    assert {len(expression) for expression in expressions(terms)} == {2}
    assert isinstance(terms.resolve(a), Ref)


def test_an_atom_that_meets_a_case_becomes_it_with_its_group_and_pins(terms):
    _, case = stacked(terms, 4)
    a = terms.fresh(4, group=Group.SCALE)
    terms.pin(a, "output")
    terms.unify(a, case)
    assert terms.resolve(a) == terms.resolve(case)
    assert {terms.group(r.atom) for r in refs(terms.resolve(case))} == {Group.SCALE}
    assert all(set(terms.pins(option)) == {"output"} for option in case.options)


def test_a_case_that_meets_one_of_its_own_options_is_that_option(terms):
    _, case = stacked(terms, 4)
    for a, b in ((case.options[1], case), (case, case.options[1])):
        terms.unify(a, b)
    assert isinstance(terms.resolve(case), Ref)
    assert terms.resolve(case) == terms.resolve(case.options[1])


def test_a_case_that_meets_its_own_dual_is_orthogonal_place_by_place(terms):
    _, case = stacked(terms, 4)
    terms.unify(case, dual(case))
    assert len({r.atom for r in refs(terms.resolve(case))}) == 3
    assert {terms.group(r.atom) for r in refs(terms.resolve(case))} == {Group.ORTHOGONAL}


def test_a_case_is_cut_and_factored_at_every_place(terms):
    index, case = stacked(terms, 6)
    left, right = terms.cut(case, [2, 4])
    assert [terms.size(t) for t in (left, right)] == [2, 4]
    assert left.index == right.index == index.atom
    for place in range(3):
        whole = terms.resolve(case.options[place])
        assert whole == Seq((at(left, index.atom, place), at(right, index.atom, place)))
    index, case = stacked(terms, 6)
    outer, one, inner = terms.factor(case, [2, 1, 3])
    assert one == UNIT
    for place in range(3):
        assert terms.resolve(case.options[place]) == Prod((at(outer, index.atom, place), at(inner, index.atom, place)))


def test_a_case_of_which_one_option_cannot_be_cut_is_not(terms):
    index = terms.fresh(2, pin=SEPARATED)
    case = Case(index.atom, (terms.fresh(6), Prod((terms.fresh(2), terms.fresh(3)))))
    assert terms.cut(case, [1, 5]) is None
    case = Case(index.atom, (terms.fresh(6), Seq((terms.fresh(2), terms.fresh(4)))))
    assert terms.factor(case, [2, 3]) is None


def test_a_term_at_one_place_loses_the_index_and_its_cases_but_no_others(terms):
    index, case = stacked(terms, 4)
    other, inside = stacked(terms, 4)
    whole = Prod((index, Seq((case, inside)), other))
    assert at(whole, index.atom, 1) == Prod((Seq((case.options[1], inside)), other))


def test_separating_tells_the_places_of_free_atoms_apart(terms):
    """Axes (3, 4, 5, 2) of which the last is held: at each place of the first there are other fours and fives."""
    index, a, b, held = terms.fresh(3), terms.fresh(4, group=Group.SCALE), terms.fresh(5), terms.fresh(2, pin="input")
    first = terms.separate([index, a, Prod((b, held)), None], 0, 0)
    assert set(terms.pins(index)) == {SEPARATED}
    second = terms.separate([index, a, Prod((b, held)), None], 0, 1)
    assert first[0] is second[0] is first[3] is None
    assert first[1] != second[1]
    assert [terms.group(t[1].atom) for t in (first, second)] == [Group.SCALE] * 2
    assert first[2].factors[0] != second[2].factors[0]
    assert first[2].factors[1] == second[2].factors[1] == held
    assert terms.resolve(a) == Case(index.atom, (first[1], second[1], terms.resolve(a).options[2]))


def test_separating_one_of_two_axes_of_an_index_leaves_the_other(terms):
    index, a = terms.fresh(3), terms.fresh(4)
    assert terms.separate([index, index, a], 0, 1)[1] == index


def test_nothing_is_separated_without_need(terms):
    a = terms.fresh(4)
    assert terms.separate([terms.fresh(3), terms.fresh(4, pin="input")], 0, 0) is None  # nothing to tell apart
    assert terms.separate([Seq((terms.fresh(1), terms.fresh(2), terms.fresh(2))), a], 0, 0) is None  # not a bare atom
    assert terms.separate([terms.fresh(3, pin="input"), a], 0, 0) is None  # places in time are alike
    assert terms.separate([terms.fresh(MOST_CASES + 1), a], 0, 0) is None
    assert terms.resolve(a) == a
    assert not terms.pins(a)


def test_a_case_is_closed_where_its_index_is_missing(terms):
    """Stacked queries and keys added to something that does not know about the stack."""
    index, case = stacked(terms, 4)
    terms.together([index, case])
    assert len(expressions(terms)) == 3  # one for each place, without the index
    assert len({r.atom for r in refs(terms.resolve(case))}) == 3
    terms.together([terms.fresh(2), case])
    assert all(isinstance(t, Ref) for expression in expressions(terms) for t in expression)
    assert len({terms.resolve(option) for option in case.options}) == 1


def test_a_case_is_closed_where_its_index_stands_twice(terms):
    """Which of the two would say what the case is?"""
    index, case = stacked(terms, 4)
    terms.together([index, index, case])
    expressions(terms)
    assert isinstance(terms.resolve(case), Ref)


def test_an_index_that_meets_its_own_case_closes_it(terms):
    """A square leaf read row by row and added to its transpose."""
    index, case = stacked(terms, 3)
    terms.unify(index, case)
    assert terms.pins(case)
    assert terms.resolve(index) == terms.resolve(case)


# ----------------------------------------------------------------------------------------------- companions and indices


def family(terms, *every, joined=()):
    """Companions and indices of all atoms of some expressions, of which the pinned are fixed."""
    for expression in every:
        terms.together(expression)
    beside = companions(expressions(terms))
    free = {a for a in beside if not terms.pins(Ref(a))}
    return beside, indices(free, beside, joined=set(joined), fixed=beside.keys() - free)


def test_head_dim_is_indexed_by_the_heads_that_always_stand_beside_it(terms):
    heads, width, stream = terms.fresh(2), terms.fresh(3), terms.fresh(7)
    beside, index = family(terms, [stream, heads, width], [Prod((heads, width)), None], [heads], [stream])
    assert beside[width.atom] == {heads.atom}
    assert beside[heads.atom] == beside[stream.atom] == set()
    assert index == {heads.atom: (), width.atom: (heads.atom,), stream.atom: ()}


def test_the_dual_of_an_index_counts_as_the_index(terms):
    heads, width = terms.fresh(2), terms.fresh(3)
    _, index = family(terms, [heads, width], [Prod((dual(heads), dual(width)))], [heads])
    assert index[width.atom] == (heads.atom,)


def test_of_two_atoms_that_never_stand_apart_the_first_is_the_index(terms):
    a, b = terms.fresh(2), terms.fresh(3)
    beside, index = family(terms, [a, b], [Prod((b, a))])
    assert beside == {a.atom: {b.atom}, b.atom: {a.atom}}
    assert index == {a.atom: (), b.atom: (a.atom,)}


def test_an_index_that_stands_twice_is_none(terms):
    """Scores q[h] . k[h'] between all pairs of heads: which of both would say what head_dim is?"""
    heads, width = terms.fresh(2), terms.fresh(3)
    assert family(terms, [heads, width], [heads, heads, width])[1][width.atom] == ()


def test_an_index_in_only_some_parts_of_a_sequence_is_none(terms):
    heads, width, rest = terms.fresh(2), terms.fresh(3), terms.fresh(4)
    _, index = family(terms, [Seq((Prod((heads, width)), rest)), width])
    assert index[width.atom] == ()
    other = Terms()
    heads, width, rest = other.fresh(2), other.fresh(3), other.fresh(4)
    _, index = family(other, [Seq((Prod((heads, width)), Prod((heads, rest))))], [heads])
    assert index == {heads.atom: (), width.atom: (heads.atom,), rest.atom: (heads.atom,)}


def test_fixed_indices_come_first_and_outer_ones_before_inner_ones(terms):
    """Units of heads of layers: layers are in order, heads are free in each of them."""
    units, heads, layers = terms.fresh(5), terms.fresh(2), terms.fresh(3, pin="steps")
    _, index = family(terms, [heads, layers, units], [layers, heads])
    assert index == {heads.atom: (layers.atom,), units.atom: (layers.atom, heads.atom)}


def test_the_loops_around_an_expression_stand_in_it_unseen(terms):
    steps, carried, inside = terms.fresh(3, pin="steps"), terms.fresh(4), terms.fresh(5)
    terms.together([carried])
    terms.loops = (steps,)
    _, index = family(terms, [carried, inside])
    assert index == {carried.atom: (), inside.atom: (steps.atom, carried.atom)}


def test_an_atom_that_is_one_node_with_another_is_no_index(terms):
    heads, width = terms.fresh(2), terms.fresh(3)
    assert family(terms, [heads, width], [heads], joined=[heads.atom])[1][width.atom] == ()
