"""Every test runs with strict dtype and rank promotion, warnings as errors and eight host devices."""

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # compile in half the time
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # tests compile far more than they compute

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and few cycles

new_context = mlir.make_ir_context
shared_context = functools.cache(new_context)


def context() -> ir.Context:
    """Where programs are written down. To make it and warm it up is a third of compiling a small one; none inside another."""
    return new_context() if ir.Context.current else shared_context()


mlir.make_ir_context = context

MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000  # Linux allows a process 65,530, every compiled function takes some, and XLA crashes without


@pytest.fixture(scope="module", autouse=True)
def _room_for_compiled_functions() -> Iterator[None]:
    yield
    shared_context.cache_clear()  # a context keeps the constants of its programs
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _numbers_of_the_file(request: pytest.FixtureRequest) -> Any:
    """Where the generator of a file stands once the file is read."""
    rng = getattr(request.module, "RNG", None)
    return rng and rng.bit_generator.state


@pytest.fixture(autouse=True)
def _numbers_of_the_test(request: pytest.FixtureRequest, _numbers_of_the_file: Any) -> None:
    """From there on each test draws, whatever was drawn by others: it has the same numbers in every order."""
    if _numbers_of_the_file:
        request.module.RNG.bit_generator.state = _numbers_of_the_file
