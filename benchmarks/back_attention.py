"""What back attention costs while decoding, as a table; `chainwright.reproduce.back_attention.cost` measures it.

python benchmarks/back_attention.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from chainwright.reproduce.back_attention.cost import CostSettings, back_cost


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows as lines of Markdown."""
    lines = ["| source | prefill ms | ratio | token ms | ratio | formula | token / formula |", "|" + "---|" * 7]
    lines += [
        f"| {row['source']} | {row['prefill ms']:.1f} | {row['prefill ratio']:.2f} | {row['token ms']:.2f} "
        f"| {row['token ratio']:.2f} | {row['formula']:.2f} | {row['token / formula']:.2f} |"
        for row in rows
    ]
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(CostSettings):
        is_many = field.name == "sources"
        default = {"repeats": 5, "new": 32}.get(field.name, field.default)
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=default, **({"nargs": "+"} if is_many else {}))
    print("\n".join(table(back_cost(CostSettings(**vars(parser.parse_args(arguments)))))))


if __name__ == "__main__":
    main()
