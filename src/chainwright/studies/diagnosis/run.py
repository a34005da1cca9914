"""Studies: one investigation as a folder that survives a kill, and the diagnosis, which is the main one.

<folder>/study.json              what it is: config, model, units; see `studies.manifest`
<folder>/traces/<cell>           traces, one unit a (task, hops, seed) cell
<folder>/scores/<cell>           what the model gave each token of them
<folder>/accuracy, errors        findings
<folder>/heads/<task>-<type>     head roles of each key error type
<folder>/steps/<cell>            step maps, if they were asked for; <folder>/step-groups compares them
<folder>/report.html             written when it is finished
<folder>/study.lock, study.log   who works on it, and when what was computed; no part of the result
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.studies import Study, Watch
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.plan import (
    Diagnosis,
    DiagnosisPlan,
    check_instruments,
    diagnosis_of,
    has_report,
    open_diagnosis,
    study_config,
)
from chainwright.studies.display import Display
from chainwright.studies.executors import Executor
from chainwright.studies.manifest import STUDY

__all__ = [
    "DiagnoseConfig",
    "Diagnosis",
    "Study",
    "has_report",
    "open_diagnosis",
    "run_diagnosis",
    "run_study",
    "study_config",
]


def run_diagnosis(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    progress: bool = True,
    executor: Executor | None = None,
) -> Diagnosis:
    """Generate, find the first errors, locate the heads, and write everything to `folder`.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        config: What to ask.
        folder: Where to write. A study of the same config and model is resumed; a finished one is returned.
        overwrite: Replace a study that is there.
        recompute: Compute damaged units again.
        progress: Show what is done and how long the rest may take.
        executor: Where units are computed, as for `Study.run`; it must compute (all but `folder` do).

    Raises:
        BadInput: The folder holds something else or a study with other settings, another process works on it, a
            finished unit is damaged, the disk is full, or the config asks for what does not exist.
    """
    check_instruments(config, "A Diagnosis")
    options: dict[str, Any] = {"overwrite": overwrite, "recompute": recompute, "progress": progress}
    study = run_study(model, tokenizer, config, folder, **options, executor=executor)
    return diagnosis_of(study)


def run_study(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    progress: bool = True,
    executor: Executor | None = None,
) -> Study:
    """Do what `run_diagnosis` does, with whatever instruments, and return the study."""
    plan = DiagnosisPlan(model, tokenizer, config)
    if not (Path(folder) / STUDY).exists():
        plan.prepare()
    study = Study.make(folder, plan, overwrite=overwrite)
    with Display() if progress else nullcontext(Watch()) as watch:
        study.run(watch, recompute=recompute, executor=executor)
    return study
