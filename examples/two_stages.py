"""Heads of two training stages of one model side by side.

    chainwright train reasoner --out runs/early --set n_tokens=6000000
    python examples/two_stages.py runs/early reasoner

For each kind of slot in which both models err often enough, heads are located in each model on its own traces of the
same problems, and compared.
"""

from __future__ import annotations

import sys

from chainwright import (
    BadInput,
    correct_contexts,
    erroneous_contexts,
    first_errors,
    generate,
    head_roles,
    load_model,
    tasks,
)
from chainwright.diagnose import HeadRoles, compare_heads

CELLS = {"parity": (10, 12, 13), "clf": (10, 12, 13), "llc": (7, 9, 10), "nums": (8, 10), "objc": (8, 10, 11)}
N_PROBLEMS, N_CONTEXTS, AT_LEAST = 25, 12, 5


def roles_of(name: str) -> dict[tuple[str, str], HeadRoles]:
    """Return the head roles of a model at every key error type with enough errors."""
    model, tokenizer = load_model(name, device="cpu")
    problems = [p for task, hops in CELLS.items() for h in hops for p in tasks.sample(task, h, N_PROBLEMS, 31)]
    traces = generate(model, tokenizer, problems, progress=False)
    found = {}
    for task, kinds in first_errors(traces).key_types.items():
        for kind in kinds:
            try:
                wrong = erroneous_contexts(tokenizer, traces, task, kind, N_CONTEXTS)
                right = correct_contexts(traces, wrong, N_CONTEXTS)
            except BadInput:
                continue
            if len(wrong) >= AT_LEAST:
                found[task, kind] = head_roles(model, right, wrong)
    print(f"{name}: {', '.join(f'{task} {kind}' for task, kind in found)}")
    return found


def main() -> None:
    """Compare the two models named on the command line."""
    first, second = (roles_of(name) for name in sys.argv[1:3])
    for kind in [kind for kind in first if kind in second]:
        found = compare_heads(first[kind], second[kind])
        print(f"\n{kind[0]}, {kind[1]}: {found.summary()}")
        for layer, row in enumerate(found.disagreement.tolist()):
            print(f"  layer {layer}:", " ".join(f"{value:+.2f}" for value in row))


if __name__ == "__main__":
    main()
