"""What the commands of `npmerge` do; `cli` only reads their options."""
