"""Chat templates: how the turns of a conversation become the text that a model reads, as Jinja.

The named ones are written here from the formats that their makers publish.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.checks import unknown
from npmerge.checkpoint.indices import read_object

FILE = "chat_template.jinja"
KEY = "chat_template"  # in tokenizer_config.json

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ raise_exception('this format has turns of user and assistant only') }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
}


def check_template(asked: str) -> None:
    """Check that a recipe's `chat_template` is "auto", a name that is known, or Jinja.

    Raises:
        ValueError: a name that is not known, with the nearest.
    """
    if asked != "auto" and asked not in TEMPLATES and not re.search(r"\{[{%]", asked):
        raise ValueError(f"{unknown('chat template', asked, ('auto', *TEMPLATES))}, or the text of a template in Jinja")


def chosen_template(asked: str, folders: Sequence[Path]) -> str | None:
    """The template that a recipe asks for; for "auto" that of most of the models, the earliest of as many, None without."""
    check_template(asked)
    if asked != "auto":
        return TEMPLATES.get(asked, asked)
    found = Counter(template.strip() for folder in folders if (template := template_of(folder)))
    return max(found, key=found.__getitem__, default=None)


def template_of(folder: Path) -> str | None:
    """The template in a model's folder: its own file, else what its tokenizer's configuration says; None without."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found: Any = read_object(config).get(KEY) if config.is_file() else None
    if isinstance(found, list):  # several, with names
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None
