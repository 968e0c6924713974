"""Features of nodes and sites read out of forward passes, and what is measured of them."""
