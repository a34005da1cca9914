"""The command `reproduce logit-flow`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._results import Finished, ResultsFolder, claim_row, command_line, write_result
from chainwright.cli._shared import print_table, say, uncollected
from chainwright.cli._studies import watch

if TYPE_CHECKING:
    pass

_CONFIG = "chainwright.reproduce.logit_flow.config:ReproduceLogitFlowConfig"
OPTIONS = ConfigOptions(_CONFIG, "model", "n", "seed", flags={"model": "--model/-m", "n": "-n"})


@register("command", "reproduce.logit-flow")
def logit_flow(
    out_folder: StudyFolder = Path("runs/reproduce-logit-flow"),
    options: Values = OPTIONS,
    is_finished: Finished = False,
    results: ResultsFolder = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Follow every fact that a model knows, and its two-hop answers, and compare both with the paper."""
    with uncollected():
        from chainwright.report.study import write_study_report
        from chainwright.reproduce.logit_flow.config import ReproduceLogitFlowConfig
        from chainwright.reproduce.logit_flow.study import run_logit_flow

    config = ReproduceLogitFlowConfig(**options)
    tables = run_logit_flow(config, out_folder, overwrite=overwrite, recompute=recompute, watch=watch(quiet),
                            only_finished=is_finished)  # fmt: skip
    print_table("Depth as a share of the layers", tables["depths"])
    print_table("What heads read at the end, % of what they add", tables["what heads read"])
    print_table("Two hops", tables["two hops"])
    print_table("Credit by position, % in the lower + upper half of the layers", tables["credit by position"])
    print_table("What is followed over its rival, nats", tables["conflict"])
    print_table("Published findings", [claim_row(claim) for claim in tables["claims"]])
    if tables["followed"] < tables["chosen"]:
        say(
            f"{tables['followed']} of {tables['chosen']} answers are followed; the others begin with an article, "
            "cannot be marked, or are not yet done."
        )
    for claim in tables["claims"]:
        write_result(results, model=Path(config.model).name, seeds=[config.seed], command=command_line(), **claim)
    if not is_finished:
        say(f"Report: {write_study_report(out_folder)}")
