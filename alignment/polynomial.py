"""Polynomials in the widths of nodes: what a network costs."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
        degree = max((len(monomial) for monomial, _ in self.terms), default=0)
        factors = [[place[n] for n in monomial] + [len(names)] * (degree - len(monomial)) for monomial, _ in self.terms]
        shape = len(self.terms), degree
        return Compiled(np.array([x for _, x in self.terms], np.float64), np.array(factors, int).reshape(shape))


@dataclass(frozen=True, eq=False)
class Compiled:
    """A polynomial as arrays: coefficients, and for each monomial its factors, filled up with the number of variables."""

    coefficients: Float[np.ndarray, " monomials"]
    factors: Int[np.ndarray, "monomials degree"]

    def __call__(self, x: Float[np.ndarray, " variables"]) -> float:
        """The value."""
        return float(self.coefficients @ np.append(x, 1.0)[self.factors].prod(-1))

    def gradient(self, x: Float[np.ndarray, " variables"]) -> Float[np.ndarray, " variables"]:
        """The derivative by each variable; at zero too."""
        values, found = np.append(x, 1.0)[self.factors], np.zeros(len(x) + 1)
        for k in range(self.factors.shape[1]):
            np.add.at(found, self.factors[:, k], self.coefficients * np.delete(values, k, 1).prod(-1))
        return found[:-1]


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
