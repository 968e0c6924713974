"""The hot paths against a peer or a floor: `python -m experiments.benchmarks --out DIR`."""
