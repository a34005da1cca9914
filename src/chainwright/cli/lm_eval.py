"""The command `lm-eval`."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from chainwright._registry import register
from chainwright.cli._command import passes_on


@register("command", "lm-eval")
@passes_on
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, which then has `--model chainwright`; all arguments are the harness's own."""
    from chainwright._errors import BadInput

    try:
        from lm_eval.__main__ import cli_evaluate

        import_module("chainwright.integrations.lm_eval")  # registers the model
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("lm_eval"):
            raise
        raise BadInput(
            "lm-evaluation-harness, which this command runs, is not installed; run pip install 'chainwright[lm-eval]'."
        ) from error
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
