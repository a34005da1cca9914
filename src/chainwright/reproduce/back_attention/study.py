"""The experiments of the back-attention paper as a study, with the controls that it lacks.

    scratch/<variant>/seed-<k>      (a) arithmetic from scratch
    base                            the frozen model: single hops, and what it answers to two-hop questions
    fit/<variant>/seed-<k>          (b, f) what was fitted, judged on compositions that it has not seen
    readings                        (d) where the main module reads, right against wrong
    conflict                        (e) right against usual wrong answer by position and depth, before and after
    table                           everything in one table

The cost (c) depends on the machine, so it is no unit: it is measured when they are finished, and lies in `cost.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._files import read_json, slug, write_json
from chainwright._registry import register
from chainwright.edits import BackHead
from chainwright.lab import two_hop
from chainwright.lab.knowledge import known_compositions, read_recipe, world_recipe
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as, load_model, provenance
from chainwright.repair.back_attention.training import AnswerTraining
from chainwright.reproduce.back_attention.cost import CostSettings, back_cost
from chainwright.reproduce.back_attention.finding import BackAttentionFinding
from chainwright.reproduce.back_attention.from_scratch import VARIANTS, FromScratch, train_arithmetic
from chainwright.reproduce.back_attention.variants import Fitted, Variant, conflict, fit, readings, variants
from chainwright.studies import Job, Plan, Results, Study, Watch
from chainwright.studies.config import Count, Place, Seeds
from chainwright.studies.manifest import Manifest
from chainwright.tasks.knowledge import World, questions

MAIN, CONTROL = "back attention", "LoRA of equal size"
COST = "cost.json"


class ReproduceBackAttentionConfig(Config):
    """Everything that the study depends on besides the model's weights; see the fields' descriptions."""

    model: Place = Field(default="world", description="Model of a made-up world: a bundled name or a folder.")
    seeds: Seeds = Field(
        default=(0, 1), description="Seeds of the main module, of its control and of the trainings from scratch."
    )
    sweep_seeds: Sequence[int] = Field(default=(0,), description="Seeds of the other variants.")
    dims: Sequence[Count] = Field(default=(64, 128, 256), description="Sizes of the module in the sweep of sizes.")
    n_steps: Count = Field(default=300, description="Steps of each fit.")
    batch_size: Count = Field(default=256, description="Rows per step.")
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate of each fit.")
    scratch_steps: int = Field(default=1000, description="Steps of each training from scratch; 0 skips those.")
    n: Count = Field(default=500, description="Maximum number of questions per part that a fit is judged on.")
    n_flow: Count = Field(default=40, description="Questions whose logit flow is followed.")
    cost_repeats: int = Field(
        default=3, ge=0, description="Times that the cost is measured, on a random model; 0 skips that."
    )

    @model_validator(mode="after")
    def _measures_from_scratch(self) -> Self:
        # the trainings are measured every 50 steps
        if self.scratch_steps != 0 and self.scratch_steps < 50:
            raise BadInput(f"scratch_steps must be 0 or at least 50; got {self.scratch_steps}.")
        return self


@register("study", "reproduce back-attention")
class ReproduceBackAttention(Plan):
    """The plan of the study."""

    kind, again = "reproduce back-attention", "chainwright study run {folder}"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Mapping[str, Any],
        config: ReproduceBackAttentionConfig,
    ):
        """Plan the study of a model of a made-up world, with the `recipe.json` that it was trained by."""
        self.model, self.tokenizer, self.asked = model, tokenizer, config
        self.recipe = world_recipe(recipe)
        if self.recipe.order != "bare":
            raise BadInput(
                f"The study asks bare questions, and this model was trained on {self.recipe.order} ones; train one "
                "with --set order=bare, or take the bundled 'world'."
            )
        self.config = {**config.record(), "recipe": json.loads(json.dumps(dict(recipe)))}
        self.source = provenance(anatomy(model).model)
        self.world: World = self.recipe.world
        self.known, self.parts = known_compositions(self.recipe)
        self.variants = variants(anatomy(model).n_layers, config.dims)

    @classmethod
    def resumed(
        cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False
    ) -> ReproduceBackAttention:
        """Return the plan of a study that was begun; loads its model."""
        config = ReproduceBackAttentionConfig(**{k: v for k, v in known.config.items() if k != "recipe"})
        loaded = load_as(known.model, device="cpu", trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, read_recipe(config.model), config)

    def units(self, done: Results) -> Sequence[str]:
        """Return the base, the fits, what is read from the main one, the trainings from scratch, and the table."""
        fits = [self._fit_id(name, seed) for name in self.variants for seed in self._seeds(name)]
        scratch = [
            f"scratch/{slug(v)}/seed-{s}" for s in self.asked.seeds for v in VARIANTS if self.asked.scratch_steps
        ]
        main, control = (self._fit_id(name, self.asked.seeds[0]) for name in (MAIN, CONTROL))
        parts = [unit for unit in fits if unit.startswith("fit/no-prefixes")]
        first = ["base", main, "readings", "conflict", control, *parts]
        units = [*first, *scratch, *(unit for unit in fits if unit not in first)]
        return [*units, "table"] if done.are_finished(units) else units

    def needs(self, unit: str) -> Sequence[str]:
        """Return the main module, which is read in two ways, and what the model does without it."""
        main = self._fit_id(MAIN, self.asked.seeds[0])
        return {"readings": [main], "conflict": ["base", main]}.get(unit, [])

    def _seeds(self, name: str) -> Sequence[int]:
        return self.asked.seeds if name in (MAIN, CONTROL) else self.asked.sweep_seeds

    @staticmethod
    def _fit_id(name: str, seed: int) -> str:
        return f"fit/{slug(name)}/seed-{seed}"

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, _, rest = job.unit.partition("/")
        if kind == "scratch":
            self._scratch(job, rest)
        elif kind == "fit":
            self._fit(job, rest)
        else:
            {"base": self._base, "readings": self._readings, "conflict": self._conflict, "table": self._table}[kind](
                job
            )

    @classmethod
    def findings(cls, study: Study) -> list[BackAttentionFinding]:
        """Return every table, what the module reads, and the conflict, as one finding."""
        known, done = study.manifest, study.results
        tables = read_json(done["table"] / "table.json")
        return [
            BackAttentionFinding(
                rows=tables["two hops"],
                scratch=tables["from scratch"],
                readings=read_json(done["readings"] / "figures.json"),
                conflict=read_json(done["conflict"] / "figures.json"),
                failures=tables["answers"],
                cost=read_json(study.folder / COST) if (study.folder / COST).is_file() else [],
                config=known.config,
                provenance=known.model,
            )
        ]

    def _scratch(self, job: Job, rest: str) -> None:
        name_part, _, seed = rest.partition("/seed-")
        variant = next(v for v in VARIANTS if slug(v) == name_part)
        settings = FromScratch(n_steps=self.asked.scratch_steps)
        write_json(job.out / "figures.json", train_arithmetic(variant, int(seed), settings, job.tick))

    def _base(self, job: Job) -> None:
        figures = two_hop.judged(self.model, self.tokenizer, self.world, self.parts, self.asked.n)
        for name, asked in (("known", self.known), ("all", self.world.compositions)):
            chosen = questions(self.world, two_hop.drawn(asked, self.asked.n), "bare")
            if chosen:
                figures[name] = two_hop.shares(self.model, self.tokenizer, chosen)
        write_json(job.out / "figures.json", figures)

    def _fit(self, job: Job, rest: str) -> None:
        name_part, _, seed = rest.partition("/seed-")
        variant = next(v for name, v in self.variants.items() if slug(name) == name_part)
        training = AnswerTraining(
            n_steps=self.asked.n_steps, batch_size=self.asked.batch_size, lr=variant.rate * self.asked.lr,
            seed=int(seed), first_hop_weight=variant.first_hop_weight,
        )  # fmt: skip
        problems = two_hop.with_prefixes(
            self.world, questions(self.world, self.parts.train, "bare"), variant.n_prefixes
        )
        fitted = fit(self.model, self.tokenizer, problems, variant, training)
        with fitted.attached(self.model) as asked:
            figures = two_hop.judged(asked, self.tokenizer, self.world, self.parts, self.asked.n)
        write_json(job.out / "figures.json", {"n_parameters": fitted.n_parameters, **figures})
        if fitted.heads:
            save_file(
                {f"{h.source}.{name}": w.contiguous() for h in fitted.heads for name, w in h.state_dict().items()},
                job.out / "heads.safetensors",
            )

    def _main(self, job: Job) -> Fitted:
        """Return the main module of the first seed, read from its unit."""
        tensors = load_file(job.done[self._fit_id(MAIN, self.asked.seeds[0])] / "heads.safetensors")
        variant: Variant = self.variants[MAIN]
        parts = anatomy(self.model)
        heads = []
        for source in variant.source:
            head = BackHead(parts.d_model, source, (parts.n_layers,), variant.d_back, variant.is_normed)
            prefix = f"{source}."
            head.load_state_dict({n.removeprefix(prefix): w for n, w in tensors.items() if n.startswith(prefix)})
            heads.append(head.requires_grad_(False))
        return Fitted(heads=tuple(heads))

    def _readings(self, job: Job) -> None:
        asked = two_hop.drawn([*self.parts.held_out, *self.parts.new_second], self.asked.n)
        found = readings(self.model, self.tokenizer, self._main(job), questions(self.world, asked, "bare"))
        write_json(job.out / "figures.json", found)

    def _conflict(self, job: Job) -> None:
        held_out = questions(self.world, two_hop.drawn(self.parts.held_out, self.asked.n_flow), "bare")
        figures = read_json(job.done["base"] / "figures.json")["held_out"]
        wrong = max(("e2", "r2(e1)"), key=lambda name: figures[name])
        before = conflict(self.model, self.tokenizer, held_out, wrong)
        with torch.no_grad(), self._main(job).attached(self.model):
            after = conflict(self.model, self.tokenizer, held_out, wrong)
        write_json(job.out / "figures.json", {"before": before, "after": after})

    def _table(self, job: Job) -> None:
        rows: list[dict[str, Any]] = [_row("no change", 0, [read_json(job.done["base"] / "figures.json")])]
        for name in filter(self._seeds, self.variants):
            found = [read_json(job.done[self._fit_id(name, s)] / "figures.json") for s in self._seeds(name)]
            rows.append(_row(name, found[0]["n_parameters"], found))
        scratch = []
        for name in VARIANTS if self.asked.scratch_steps else ():
            runs = [read_json(job.done[f"scratch/{slug(name)}/seed-{s}"] / "figures.json") for s in self.asked.seeds]
            scratch.append(_scratch_row(name, runs))
        write_json(
            job.out / "table.json", {"two hops": rows, "from scratch": scratch, "answers": self._answers(job.done)}
        )

    def _answers(self, done: Results) -> list[dict[str, Any]]:
        """Return what is answered to held-out compositions: alone, with the main module, and with its control."""
        ways = {"no change": ["base"]} | {
            name: [self._fit_id(name, s) for s in self._seeds(name)] for name in (MAIN, CONTROL)
        }
        rows = []
        for name, units in ways.items():
            found = [read_json(done[unit] / "figures.json")["held_out"] for unit in units]
            rows.append({"variant": name} | {c: mean(f[c] for f in found) for c in two_hop.CATEGORIES})
        return rows


def _row(name: str, n_parameters: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": name, "parameters": n_parameters, "seeds": len(found)}
    row["one hop"] = mean(f["one hop"]["right"] for f in found)
    for part in two_hop.PARTS:
        if part in found[0]:
            row[part] = mean(f[part]["e3"] for f in found)
    row["held_out by seed"] = [f["held_out"]["e3"] for f in found]
    row["wrong: e2"] = mean(f["held_out"]["e2"] for f in found)
    row["wrong: r2(e1)"] = mean(f["held_out"]["r2(e1)"] for f in found)
    return row


def _scratch_row(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "variant": name,
        "parameters": runs[0]["n_parameters"],
        "accuracy": mean(run["accuracy"] for run in runs),
        "by seed": [run["accuracy"] for run in runs],
        "steps to 90%": [run["steps_to_90"] for run in runs],
    }


def run_back_attention(
    config: ReproduceBackAttentionConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    watch: Watch | None = None,
) -> BackAttentionFinding:
    """Run or resume the study in a folder, and return its finding.

    Args:
        config: Its settings.
        folder: Where it lies.
        overwrite: Replace a study with other settings.
        recompute: Compute damaged units again.
        watch: Progress callbacks.

    Raises:
        BadInput: The model is not one of a made-up world, or the folder holds another study.
    """
    model, tokenizer = load_model(config.model, device="cpu")
    plan = ReproduceBackAttention(model, tokenizer, read_recipe(config.model), config)
    study = Study.make(folder, plan, overwrite=overwrite)
    study.run(watch, recompute=recompute)
    if config.cost_repeats and not (study.folder / COST).is_file():
        write_json(study.folder / COST, back_cost(CostSettings(repeats=config.cost_repeats)))
    return plan.findings(study)[0]


__all__ = ["ReproduceBackAttention", "ReproduceBackAttentionConfig", "run_back_attention"]
