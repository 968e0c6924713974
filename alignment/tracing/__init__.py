"""From any pure function to its symmetry graph: the walk over its jaxpr, and what the walk found as labels of axes."""
