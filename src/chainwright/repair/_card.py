"""The card of a repair: a README with what it is, for which model it was made, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainwright._tables import table


def card(kind: str, description: str, origin: Mapping[str, Any]) -> str:
    """Return the card as Markdown with the front matter that the Hub reads.

    Args:
        kind: Kind of the repair, such as "tcr".
        description: What it does.
        origin: `Origin` as plain values.
    """
    model = origin["model"]
    lines = ["---", "library_name: chainwright", "license: apache-2.0", f"tags: [chainwright, {kind}]"]
    if "/" in model.get("model", ""):
        lines.append(f"base_model: {model['model']}")
    name = model.get("model", "any model")
    lines += ["---", "", f"# {kind} for {name}", "", description, ""]
    if model:
        lines += ["Made for:", "", *(f"- {label}: {value}" for label, value in model.items()), ""]
    lines += ["```python", "from chainwright import Repair, generate, load_model", ""]
    lines += [f'model, tokenizer = load_model("{name}")', 'repair = Repair.from_pretrained("this folder or Hub id")']
    lines += ["traces = generate(model, tokenizer, problems, repair=repair)", "```", ""]
    if origin["figures"]:
        lines += ["## Figures", "", origin["note"], "", *table(origin["figures"]), ""]
    return "\n".join(lines)
