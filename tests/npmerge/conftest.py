"""Compilation, not arithmetic, is what these tests spend their time on."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Let XLA skip its expensive passes in this folder."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
