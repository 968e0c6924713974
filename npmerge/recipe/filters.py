"""Lists of parts of names, as `include` and `exclude` have them."""

from typing import Annotated, Any

from pydantic import PlainValidator

from npmerge.recipe.settings import Filter, SettingError, shown
from npmerge.recipe.strict import fault


def _filters(raw: Any) -> tuple[Filter, ...]:
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not texts:
        raise fault(f"expected a list of parts of names, got {shown(raw)}")
    found = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise fault(f"expected a part of a name, got {shown(text)}", (i,))
        try:
            found.append(Filter(text))
        except SettingError as error:
            raise fault(str(error), (i,)) from None
    return tuple(found)


Filters = Annotated[tuple[Filter, ...], PlainValidator(_filters)]
