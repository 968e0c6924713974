"""Layer-wise distillation of merges that no device holds at once: one group of layers learned after another."""
