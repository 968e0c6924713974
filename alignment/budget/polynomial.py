"""Polynomials in the widths of nodes: what a network costs."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # finds its parts when they are used: they take a tenth of the time in which `npmerge merge` starts
from jaxtyping import Float, Int

Monomial = tuple[str, ...]  # the names of its factors, sorted; twice if squared


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of named variables: `terms` holds each product once, with its coefficient."""

    terms: tuple[tuple[Monomial, float], ...] = ()

    @staticmethod
    def constant(value: float) -> "Polynomial":
        """A number."""
        return Polynomial((((), float(value)),))

    @staticmethod
    def variable(name: str, factor: float = 1.0) -> "Polynomial":
        """A variable, times a number."""
        return Polynomial((((name,), float(factor)),))

    def __add__(self, other: "Polynomial") -> "Polynomial":
        return _collected([*self.terms, *other.terms])

    def __mul__(self, other: "Polynomial") -> "Polynomial":
        return _collected([(tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in other.terms])

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value at these values of the variables."""
        return float(sum(factor * math.prod(values[name] for name in names) for names, factor in self.terms))

    def at(self, values: Mapping[str, float]) -> "Polynomial":
        """The polynomial in the other variables, with these values for some."""
        parts = [(names, factor * math.prod(values.get(n, 1) for n in names)) for names, factor in self.terms]
        return _collected((tuple(n for n in names if n not in values), factor) for names, factor in parts)

    def compiled(self, names: Sequence[str]) -> "Compiled":
        """The polynomial as arrays, for values in the order of these names."""
        place = {name: k for k, name in enumerate(names)}
        powers = [collections.Counter(place[name] for name in monomial) for monomial, _ in self.terms]
        longest = max(map(len, powers), default=0)
        factors = [[*p.items(), *[(len(names), 0)] * (longest - len(p))] for p in powers]
        variables, exponents = np.moveaxis(np.array(factors, int).reshape(len(powers), longest, 2), -1, 0)
        return Compiled(np.array([x for _, x in self.terms], np.float64), variables, exponents, len(names))


@dataclass(frozen=True, eq=False)
class Compiled:
    """A polynomial as arrays, for many points at once: for each monomial its coefficient and its factors.

    Attributes:
        coefficients: of the monomials.
        variables: of each factor; `count` where a monomial has fewer factors than others.
        exponents: of each factor, 0 there.
        count: how many variables there are.
    """

    coefficients: Float[np.ndarray, " monomials"]
    variables: Int[np.ndarray, "monomials factors"]
    exponents: Int[np.ndarray, "monomials factors"]
    count: int

    def __call__(self, x: Float[np.ndarray, "*batch variables"]) -> Float[np.ndarray, "*batch"]:
        """The values."""
        return np.tensordot(self.coefficients, self._powers(x)[self.exponents, self.variables].prod(1), 1)

    def along(self, x: Float[np.ndarray, "*batch variables"]) -> Float[np.ndarray, "powers *batch variables"]:
        """What the polynomial is when one variable moves from x and all others stay: its coefficients by powers of the step.

        The first are the values at x, the second the gradient; those of higher powers are there up to the highest exponent.
        """
        table = self._powers(x)
        factors = table[self.exponents, self.variables]
        found = np.zeros(table.shape)
        found[0] = np.tensordot(self.coefficients, factors.prod(1), 1)
        for f, (variables, exponents) in enumerate(zip(self.variables.T, self.exponents.T, strict=True)):
            where = np.equal.outer(np.arange(self.count + 1), variables) * self.coefficients
            rest = np.delete(factors, f, 1).prod(1)
            for power in range(1, len(table)):
                part = table[np.maximum(exponents - power, 0), variables] * rest
                found[power] += np.tensordot(where * scipy.special.comb(exponents, power), part, 1)
        return np.moveaxis(found[:, :-1], 1, -1)

    def _powers(self, x: Float[np.ndarray, "*batch variables"]) -> Float[np.ndarray, "powers variables_and_one *batch"]:
        """All powers that occur, and those of 1 at the end."""
        table = np.ones((self.exponents.max(initial=1) + 1, self.count + 1, *x.shape[:-1]))
        table[1:, :-1] = np.moveaxis(x, -1, 0)
        return table.cumprod(0)


def total(polynomials: Iterable[Polynomial]) -> Polynomial:
    """Their sum."""
    return _collected([term for polynomial in polynomials for term in polynomial.terms])


def product(polynomials: Iterable[Polynomial]) -> Polynomial:
    """Their product."""
    return math.prod(polynomials, start=Polynomial.constant(1))


def _collected(terms: Iterable[tuple[Monomial, float]]) -> Polynomial:
    found: dict[Monomial, float] = collections.defaultdict(float)
    for names, factor in terms:
        found[names] += factor
    return Polynomial(tuple(sorted((names, factor) for names, factor in found.items() if factor)))
