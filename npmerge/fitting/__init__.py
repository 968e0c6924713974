"""Descent on theta: the Optax loop, one traced step of it, its checkpoints and the memory it takes."""
