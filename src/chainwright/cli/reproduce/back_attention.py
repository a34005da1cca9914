"""The command `reproduce back-attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import Changes, Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._shared import print_table, say
from chainwright.cli._studies import watch

_CONFIG = "chainwright.reproduce.back_attention.study:ReproduceBackAttentionConfig"
MODEL = ConfigOptions(
    _CONFIG, "model", flags={"model": "--model/-m"}, helps={"model": "Model that 'train world' made: a name or folder."}
)


@register("command", "reproduce.back-attention")
def back_attention(
    out_folder: StudyFolder = Path("runs/reproduce-back-attention"),
    model: Values = MODEL,
    changes: Changes = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Repair two-hop questions and train arithmetic with back attention, and compare both with their controls."""
    from chainwright.report.study import write_study_report
    from chainwright.reproduce.back_attention.study import ReproduceBackAttentionConfig, run_back_attention

    config = _parse.changed(ReproduceBackAttentionConfig(**model), changes or [])
    found = run_back_attention(config, out_folder, overwrite=overwrite, recompute=recompute, watch=watch(quiet))
    path = write_study_report(out_folder)
    two_hops = [{name: row.get(name, "") for name in found.rows[0] if name != "held_out by seed"} for row in found.rows]
    _print("Two hops, frozen model", two_hops)
    _print("Answers to held-out compositions", found.failures)
    _print("Arithmetic from scratch", found.scratch)
    _print("Cost on a random model of 8 layers", found.cost)
    say(f"Report: {path}")


def _print(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    words = [{n: f"{v:.3f}" if isinstance(v, float) else str(v) for n, v in row.items()} for row in rows]
    print_table(title, words)
