"""Where and how a model's facts are written: the stages of every fact that it knows, and its two-hop answers.

asked               what the model says to every question
follow/<k>          the flow of ten answers
table               every table, and what is measured of the published findings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.lab.knowledge import recipe_for
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as, load_model, provenance
from chainwright.models.sources import bundled_models
from chainwright.reproduce.logit_flow import claims
from chainwright.reproduce.logit_flow.asking import Questions, asked, chosen, query
from chainwright.reproduce.logit_flow.config import ReproduceLogitFlowConfig
from chainwright.reproduce.logit_flow.measures import contrasts_of, follow, stages_of
from chainwright.studies import Job, Plan, Results, Study, Watch
from chainwright.studies.manifest import Manifest

_TOGETHER = 10


@register("study", "reproduce logit-flow")
class ReproduceLogitFlow(Plan):
    """The plan of the study."""

    kind, again = "reproduce logit-flow", "chainwright study run {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: ReproduceLogitFlowConfig):
        """Plan the study of a model, whose world is read from its recipe if it has one."""
        self.model: PreTrainedModel = anatomy(model).model
        self.tokenizer, self.settings = tokenizer, config
        self.config = config.record()
        self.source = provenance(self.model)
        is_made_up = config.model in bundled_models() or (Path(config.model) / "recipe.json").is_file()
        self.questions = Questions.made_up(recipe_for(config.model), config.seed) if is_made_up else Questions.real()

    @classmethod
    def resumed(
        cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False
    ) -> ReproduceLogitFlow:
        """Return the plan of a study that was begun; loads its model."""
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, ReproduceLogitFlowConfig(**known.config))

    def units(self, done: Results) -> Sequence[str]:
        """Return the questions, then the answers that are followed, then the tables."""
        if "asked" not in done:
            return ["asked"]
        n_followed = len(chosen(_answers(done), self.settings.n, self.settings.seed))
        # every fourth first, so that a study that is broken off has answers of each kind
        parts = [f"follow/{k:03d}" for k in sorted(range(-(-n_followed // _TOGETHER)), key=lambda k: (k % 4, k))]
        units = ["asked", *parts]
        return [*units, "table"] if done.are_finished(units) else units

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, _, rest = job.unit.partition("/")
        if kind == "asked":
            write_json(job.out / "answers.json", asked(self.model, self.tokenizer, self.questions))
        elif kind == "follow":
            self._follow(job, int(rest))
        else:
            self._table(job)

    def _follow(self, job: Job, k: int) -> None:
        answers, rows = _answers(job.done), []
        for group, i in chosen(answers, self.settings.n, self.settings.seed)[k * _TOGETHER : (k + 1) * _TOGETHER]:
            one = query(self.model, self.tokenizer, group, self.questions.problems[i], answers[i]["said"])
            if one is not None:
                rows.append({"question": i, **follow(self.model, one)})
        write_json(job.out / "rows.json", rows)

    def _table(self, job: Job) -> None:
        write_json(job.out / "table.json", self.tables(job.done))

    def tables(self, done: Results) -> dict[str, Any]:
        """Return every table of the answers that were followed so far, and what is measured of published findings."""
        answers, rows = _answers(done), _rows(done)
        return {
            "depths": claims.depth_table(rows),
            "what heads read": claims.read_table(rows),
            "two hops": claims.split_table(answers),
            "credit by position": claims.role_table(rows),
            "conflict": claims.conflict_table(rows),
            "claims": list(claims.claims(answers, rows)),
            "followed": len(rows),
            "chosen": len(chosen(answers, self.settings.n, self.settings.seed)),
        }

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return the stages of each group of known facts, and the conflict of two-hop answers."""
        rows, source = _rows(study.results), study.manifest.model
        found: list[Finding] = [
            stages_of(members, f"facts; {group}", source) for group, members in claims.known_of(rows).items()
        ]
        contrast = contrasts_of(rows, source)
        return found if contrast is None else [*found, contrast]


def finished(study: Study) -> Results:
    """Return what is finished of a study.

    Raises:
        BadInput: Nothing is.
    """
    if not study.results:
        raise BadInput(f"Nothing is finished in {study.folder}; run the study first, without --finished.")
    return study.results


def _answers(done: Results) -> list[dict[str, Any]]:
    return read_json(done["asked"] / "answers.json")  # type: ignore[no-any-return]


def _rows(done: Results) -> list[dict[str, Any]]:
    return [row for unit, path in done.items() if unit.startswith("follow/") for row in read_json(path / "rows.json")]


def run_logit_flow(
    config: ReproduceLogitFlowConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    watch: Watch | None = None,
    only_finished: bool = False,
) -> Mapping[str, Any]:
    """Run or resume the study in a folder, and return its tables.

    Args:
        config: Its settings.
        folder: Where it lies.
        overwrite: Replace a study with other settings.
        recompute: Compute damaged units again.
        watch: Progress callbacks.
        only_finished: Compute nothing more, and return the tables of what is finished.

    Raises:
        BadInput: The model has a recipe of another kind, or the folder holds another study.
    """
    model, tokenizer = load_model(config.model)
    plan = ReproduceLogitFlow(model, tokenizer, config)
    study = Study.make(folder, plan, overwrite=overwrite)
    if only_finished:
        return plan.tables(finished(study))
    done = study.run(watch, recompute=recompute)
    tables: Mapping[str, Any] = read_json(done["table"] / "table.json")
    return tables


__all__ = ["ReproduceLogitFlow", "finished", "run_logit_flow"]
