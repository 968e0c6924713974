"""The `align:` and `learn:` blocks of recipes: from stored models to stored models, by way of networks that run.

The way of a coefficient: `starts` takes it from the plan, `learner` descends on it by `npmerge.fitting`, and `members` puts the
tensors of the merged network into a plan of copies, which `npmerge.stream` writes as it writes any other.
"""
