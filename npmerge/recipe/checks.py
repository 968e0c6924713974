"""Whether a recipe says what its method needs: models, a base, and parameters in their ranges. No file is opened."""

from alignment.checks import unknown
from npmerge.recipe.groups import Group, Level, groups_of
from npmerge.recipe.parameters import METHODS, Method
from npmerge.recipe.schema import Recipe

BY_PARAMETER: tuple[str, ...] = ("per_parameter",)
BY_ROW: tuple[str, ...] = ("per_channel", "per_parameter")


def check_recipe(recipe: Recipe) -> None:
    """Check everything that can be known from the recipe alone.

    Raises:
        ValueError: the first thing that is wrong (file, line, keys).
    """
    method = METHODS[recipe.merge_method]
    for group in groups_of(recipe):
        for level in group.levels:
            _check_level(recipe, method, level)
        for member in group.members:
            _check_level(recipe, method, member.level, own=True)
        _check_models(recipe, method, group)
        _check_given(recipe, method, group)
    _check_start(recipe)


def _check_level(recipe: Recipe, method: Method, level: Level, own: bool = False) -> None:
    names = [parameter.name for parameter in method.parameters]
    for name, setting in level.settings.items():
        path = (*level.path, name)
        if name not in names:
            raise recipe.error(path, unknown(f"parameter of {method.name}", name, names))
        parameter = method.parameter(name)
        if own and parameter.scope == "shared":
            raise recipe.error(path, f"{name!r} is one for all models: give it under the parameters of the recipe or a slice")
        for at, value in setting.values():
            if wrong := parameter.fault(value):
                raise recipe.error((*path, *at), f"{name!r} of {method.name} {wrong}")


def _check_models(recipe: Recipe, method: Method, group: Group) -> None:
    if method.needs_base and group.base is None:
        raise recipe.error(("merge_method",), f"{method.name} needs a base: give its path as base_model")
    for i, member in enumerate(group.members):
        if any(member.model == other.model and member.first == other.first for other in group.members[:i]):
            raise recipe.error((*group.path, i, "model"), f"{member.model!r} stands there twice")
        if group.base is not None and i > group.base and member.model == group.members[group.base].model:
            raise recipe.error((*group.path, i, "model"), f"the base {member.model!r} stands there twice")
    count = len(group.merged(method))
    if count < method.least or (method.most is not None and count > method.most):
        raise recipe.error(group.path, f"{method.name} merges {_expected(method)}, got {_names(method, group)}")


def _expected(method: Method) -> str:
    most = "" if method.most == method.least else " or more"
    plural = "model" if method.least == 1 and not most else "models"
    besides = {"input": "", "first": ", the base included"}.get(method.base, " besides the base")
    return f"{method.least}{most} {plural}{besides}"


def _names(method: Method, group: Group) -> str:
    return ", ".join(repr(group.members[i].model) for i in group.merged(method)) or "none"


def _check_given(recipe: Recipe, method: Method, group: Group) -> None:
    """Check that each parameter without a default is given, be it for some tensors only."""
    shared = {name for level in group.levels for name in level.settings}
    for parameter in method.parameters:
        if parameter.default is not None or parameter.name in shared:
            continue
        if parameter.scope == "shared":
            raise recipe.error(("merge_method",), f"{method.name} needs the parameter {parameter.name!r}: got none")
        for i in group.merged(method):
            member = group.members[i]
            if parameter.name not in member.level.settings:
                needed = f"the parameter {parameter.name!r} of {member.model!r}"
                raise recipe.error(member.path, f"{method.name} needs {needed}: got none")


def _check_start(recipe: Recipe) -> None:
    """Refuse to learn from a method whose coefficients differ inside a tensor, unless the granularity holds as many."""
    if recipe.learn is None:
        return
    levels = [level for group in groups_of(recipe) for level in group.levels]
    rows = [value for level in levels if "filter_wise" in level.settings for _, value in level.settings["filter_wise"].values()]
    if recipe.merge_method == "ties":
        why, valid = "ties keeps other entries of each tensor", BY_PARAMETER
    elif recipe.merge_method == "model_stock" and any(rows):
        why, valid = "model_stock with filter_wise has a coefficient for each row of a tensor", BY_ROW
    else:
        return
    given, name = "granularity" in recipe.learn.model_fields_set, recipe.learn.granularity.name
    if name not in valid:
        got = name if given else f"{name}, the default"
        says = f"{why}, so only {' or '.join(valid)} can start from it, got {got}: give granularity: {valid[-1]}"
        raise recipe.error(("learn", "granularity") if given else ("learn",), says)
