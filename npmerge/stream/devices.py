"""Where JAX computes: chosen before it is imported, since it looks for devices when it first computes."""

import os
import re
import sys

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "cuda": "cuda,cpu", "tpu": "tpu,cpu"}


def use_device(name: str) -> None:
    """Let JAX compute on a device: cpu, gpu (or cuda) or tpu, or the one of that number, as in cuda:1.

    Raises:
        ValueError: another name, or a device that JAX does not find here.
    """
    match = re.fullmatch(r"(cpu|gpu|cuda|tpu)(?::(\d+))?", name)
    if not match:
        raise ValueError(f"--device must be cpu, gpu, cuda or tpu, or such as cuda:1, got {name!r}")
    kind, number = match[1], int(match[2] or 0)
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = PLATFORMS[kind]
        os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")  # every block has a thread of its own already
    if kind == "cpu" and not number:
        return
    import jax  # only where it has to be asked

    try:
        found = jax.devices("cuda" if kind == "gpu" else kind)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: JAX finds none here: {str(error).splitlines()[0]}") from None
    if number >= len(found):
        raise ValueError(f"--device {name}: JAX finds {len(found)} of them, numbered from 0")
    jax.config.update("jax_default_device", found[number])
