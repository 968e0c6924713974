"""The algebra of axis terms, by hand."""

import pytest

from alignment.terms import UNIT, Group, Prod, Ref, Seq, Terms, dual, product, refs, sequence


@pytest.fixture
def terms():
    return Terms()


def test_unifying_two_atoms_intersects_groups_and_joins_pins(terms):
    a, b = terms.fresh(4, group=Group.SCALE), terms.fresh(4, group=Group.ORTHOGONAL)
    terms.pin(b, "input")
    terms.unify(a, b)
    assert terms.resolve(a) == terms.resolve(b)
    assert terms.group(terms.resolve(a).atom) == Group.PERMUTATION
    assert terms.pins(a) == ("input",)


def test_a_pin_that_comes_after_unification_reaches_both(terms):
    a, b = terms.fresh(4), terms.fresh(4)
    terms.unify(a, b)
    terms.pin(a, "output")
    assert terms.pins(b) == ("output",)


def test_meeting_its_own_dual_leaves_the_orthogonal_group(terms):
    a = terms.fresh(4)
    terms.unify(a, dual(a))
    assert terms.group(a.atom) == Group.ORTHOGONAL
    assert terms.pins(a) == ()


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
    assert all(terms.pins(t) == ("axes of incompatible structure meet",) for t in (a, b, c, d))


def test_cut_of_an_atom_keeps_its_group_and_pins(terms):
    a = terms.fresh(5, group=Group.SCALE, pin="input")
    left, right = terms.cut(a, [2, 3])
    assert terms.resolve(a) == Seq((left, right))
    for piece, size in ((left, 2), (right, 3)):
        assert (terms.size(piece), terms.group(piece.atom), terms.pins(piece)) == (size, Group.SCALE, ("input",))


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
    assert terms.pins(a) == ("a product meets a sequence of segments",)
    assert terms.pins(b) == ()
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
