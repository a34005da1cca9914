"""Back attention beside a frozen pretrained model, with its controls, on problems that are answered at once.

    way/<slug>/seed-<k>     held-out problems answered in one way, after training where it has parameters
    table                   every way with its gain over the model alone, and what is measured of the published findings

The cost of a token depends on the machine, so it is no unit: it is measured when they are finished, into `cost.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import read_json, slug, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import bootstrap_interval, wilson
from chainwright.decode.run import generate
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as, load_model, provenance
from chainwright.repair.back_attention.repair import BackAttention
from chainwright.reproduce.back_attention.cost import token_ratio
from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
from chainwright.reproduce.back_real.problems import Parts, for_training, outcome, parts_of
from chainwright.reproduce.back_real.ways import ALONE, CONTROL, MAIN, OWN, answering, read_depths, ways
from chainwright.reproduce.logit_flow.study import finished
from chainwright.studies import Job, Plan, Results, Study, Watch
from chainwright.studies.manifest import Manifest
from chainwright.tasks import Problem, facts

ONE_HOP, COST = "one hop", "cost.json"
_N_TOKENS, _N_ONE_HOP = 8, 40
_FINDINGS = {
    "facts": "flow-back-two-hop", "arithmetic": "flow-back-arithmetic", "word-problems": "flow-back-word-problems",
}  # fmt: skip


@register("study", "reproduce back-attention-real")
class ReproduceBackReal(Plan):
    """The plan of the study."""

    kind, again = "reproduce back-attention-real", "chainwright study run {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: ReproduceBackRealConfig):
        """Plan the study of a pretrained model.

        Raises:
            BadInput: It has fewer layers than a source asks for.
        """
        parts = anatomy(model)
        self.model: PreTrainedModel = parts.model
        self.tokenizer, self.settings = tokenizer, config
        if too_high := [s for s in (config.source, *config.sweep) if s >= parts.n_layers]:
            raise BadInput(f"Source layer {too_high[0]} does not exist: the model has {parts.n_layers} layers, from 0.")
        self.config, self.source = config.record(), provenance(self.model)
        self.ways = ways(config)

    @classmethod
    def resumed(
        cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False
    ) -> ReproduceBackReal:
        """Return the plan of a study that was begun; loads its model."""
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, ReproduceBackRealConfig(**known.config))

    def units(self, done: Results) -> Sequence[str]:
        """Return each way on each of its seeds, and the table."""
        # every way on the first seed comes first, so that a study that is broken off has compared them
        pairs = [(seed, name) for name in self.ways for seed in self._seeds(name)]
        units = [self._id(name, seed) for seed in self.settings.seeds for at, name in pairs if at == seed]
        return [*units, "table"] if done.are_finished(units) else units

    def _seeds(self, name: str) -> Sequence[int]:
        return self.settings.seeds if name in (ALONE, MAIN, CONTROL) else self.settings.seeds[:1]

    @staticmethod
    def _id(name: str, seed: int) -> str:
        return f"way/{slug(name)}/seed-{seed}"

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        if job.unit == "table":
            write_json(job.out / "table.json", self.tables(job.done))
            return
        _, name_part, seed = job.unit.split("/")
        way = next(way for name, way in self.ways.items() if slug(name) == name_part)
        parts = parts_of(self.settings, int(seed.removeprefix("seed-")))
        self._answer(job, way, parts, int(seed.removeprefix("seed-")))

    def _answer(self, job: Job, way: Any, parts: Parts, seed: int) -> None:
        problems = for_training(parts.train)
        asked = answering(self.model, self.tokenizer, way, problems, self.settings, seed)
        figures: dict[str, Any] = {"n_parameters": asked.n_parameters, "n_train": len(problems), "parts": {}}
        held_out = {**parts.held_out, **({ONE_HOP: _one_hop()} if self.settings.kind == "facts" else {})}
        with asked.attached() as model:
            for name, some in held_out.items():
                said = self._said(model, some)
                outcomes = [_outcome(problem, text) for problem, text in zip(some, said, strict=True)]
                figures["parts"][name] = {"said": said, "outcomes": outcomes}
        write_json(job.out / "figures.json", figures)
        if asked.repair is not None:
            asked.repair.save_pretrained(job.out / "repair")

    def _said(self, model: PreTrainedModel, problems: Sequence[Problem]) -> list[str]:
        prompts = [problem.prompt for problem in problems]
        traces = generate(model, self.tokenizer, prompts, raw=True, max_new_tokens=_N_TOKENS, progress=False)
        return [trace.response or "" for trace in traces]

    def tables(self, done: Results) -> dict[str, Any]:
        """Return the ways that are finished, and what is measured of published findings; a way has its own seeds."""
        return {"ways": self._rows(done), "claims": self._claims(done)}

    def _finished(self, done: Results, *names: str) -> list[int]:
        """Return the seeds on which all of some ways are finished."""
        return [s for s in self.settings.seeds if all(self._id(name, s) in done for name in names)]

    def _rows(self, done: Results) -> list[dict[str, Any]]:
        rows = []
        for name in self.ways:
            found = [read_json(done[self._id(name, s)] / "figures.json") for s in self._finished(done, name)]
            if not found:
                continue
            row: dict[str, Any] = {"way": name, "parameters": f"{found[0]['n_parameters']:,}", "seeds": len(found)}
            for part in found[0]["parts"]:
                row[part] = _share([o for each in found for o in each["parts"][part]["outcomes"]])
            if self.settings.kind == "facts":
                wrong = Counter(o for each in found for p in each["parts"] if p != ONE_HOP
                                for o in each["parts"][p]["outcomes"] if o != "right")  # fmt: skip
                row["wrong: e2, e1, other"] = ", ".join(str(wrong[o]) for o in ("e2", "e1", "other"))
            rows.append(row)
        return rows

    def _claims(self, done: Results) -> list[dict[str, Any]]:
        compared = {_FINDINGS[self.settings.kind]: ALONE}
        if self.settings.kind == "facts":
            compared["flow-back-control"] = CONTROL
        claims = []
        for finding, other in compared.items():
            if seeds := self._finished(done, MAIN, other):
                ours, theirs = (self._right(done, name, seeds) for name in (MAIN, other))
                claims.append({**_difference(finding, ours, theirs), "seeds": seeds, **self._note(done, finding)})
        if self.settings.sweep and (best := self._best_source(done)):
            claims.append(best)
        return claims

    def _note(self, done: Results, finding: str) -> dict[str, str]:
        """Return a note on what the module gains where it may read nothing but its own position."""
        seeds = self._finished(done, MAIN, OWN)
        if finding != "flow-back-control" or not seeds:
            return {}
        own, ours = (self._right(done, name, seeds) for name in (OWN, MAIN))
        text = f"Reading its own position alone, the module gets {own.sum():.0f} of {len(own)} right"
        if own.sum() >= ours.sum():
            return {"note": f"{text}, and {ours.sum():.0f} reading all, so other positions are not what it needs."}
        return {"note": f"{text} instead of {ours.sum():.0f}."}

    def _right(self, done: Results, name: str, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return whether each held-out problem is answered right, those of all seeds in a row."""
        found = [read_json(done[self._id(name, seed)] / "figures.json")["parts"] for seed in seeds]
        outcomes = [o for parts in found for part in parts if part != ONE_HOP for o in parts[part]["outcomes"]]
        return np.array([o == "right" for o in outcomes], dtype=float)

    def _best_source(self, done: Results) -> dict[str, Any] | None:
        """Return the record of the best source layer on the first seed; None before all are measured."""
        first, shares = self.settings.seeds[0], {}
        for source in sorted((self.settings.source, *self.settings.sweep)):
            name = MAIN if source == self.settings.source else f"source {source}"
            if first not in self._finished(done, name):
                return None
            right = self._right(done, name, [first])
            shares[source] = (int(right.sum()), len(right))
        best = max(shares, key=lambda source: shares[source][0])
        n_layers = anatomy(self.model).n_layers
        listed = ", ".join(f"{source}: {k} of {n}" for source, (k, n) in shares.items())
        return {
            "finding": "flow-back-source", "value": best / n_layers, "n": len(shares), "n_what": "source layers",
            "shown": f"layer {best} of {n_layers}", "seeds": [first],
            "note": f"Held-out questions right by source: {listed}.",
        }  # fmt: skip

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return nothing: what was found is in the table."""
        return []


def _outcome(problem: Problem, said: str) -> str:
    if problem.hops == 1:
        return "right" if facts.is_right(problem, said) else "other"
    return outcome(problem, said)


def _one_hop() -> list[Problem]:
    """Return some one-hop facts, the same every time: what a repair must not lose."""
    every = [problem for relation in facts.relations() for problem in facts.one_hop(relation)]
    return every[:: len(every) // _N_ONE_HOP][:_N_ONE_HOP]


def _share(outcomes: Sequence[str]) -> str:
    n_right, n = outcomes.count("right"), len(outcomes)
    interval = wilson(n_right, n)
    return f"{n_right} of {n}: {n_right / n:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _difference(finding: str, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the record of a paired difference of shares right."""
    moved = ours - theirs
    interval = bootstrap_interval(moved, n_resamples=2000, seed=0)
    return {
        "finding": finding, "value": float(moved.mean()), "low": interval.low, "high": interval.high,
        "shown": f"{100 * moved.mean():+.1f} points, {100 * theirs.mean():.1f}% to {100 * ours.mean():.1f}%",
        "n": len(moved), "n_what": "held-out problems",
    }  # fmt: skip


def run_back_real(
    config: ReproduceBackRealConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    recompute: bool = False,
    watch: Watch | None = None,
    cost_repeats: int = 0,
    only_finished: bool = False,
) -> Mapping[str, Any]:
    """Run or resume the study in a folder, and return its tables.

    Args:
        config: Its settings.
        folder: Where it lies.
        overwrite: Replace a study with other settings.
        recompute: Compute damaged units again.
        watch: Progress callbacks.
        cost_repeats: Times that the cost of a token is measured, when the study is finished; 0 skips that.
        only_finished: Compute nothing more, and return the tables of what is finished.

    Raises:
        BadInput: A source layer that the model lacks, a file without problems, or a folder with another study.
    """
    model, tokenizer = load_model(config.model)
    plan = ReproduceBackReal(model, tokenizer, config)
    study = Study.make(folder, plan, overwrite=overwrite)
    done = finished(study) if only_finished else study.run(watch, recompute=recompute)
    tables: dict[str, Any] = plan.tables(done) if only_finished else read_json(done["table"] / "table.json")
    if cost_repeats:
        if not (study.folder / COST).is_file():
            write_json(study.folder / COST, _cost(anatomy(model).model, config, cost_repeats))
        tables["claims"].append(read_json(study.folder / COST))
    return tables


def ship(study_folder: str | Path, config: ReproduceBackRealConfig, folder: str | Path, *, overwrite: bool) -> Path:
    """Save the back attention of the first seed as a repair whose card has its figures on held-out problems."""
    ways_of = {name: Path(study_folder) / "way" / slug(name) / f"seed-{config.seeds[0]}" for name in (ALONE, MAIN)}
    figures = {name: read_json(path / "figures.json") for name, path in ways_of.items()}
    rows = []
    for part in figures[ALONE]["parts"]:
        alone, repaired = (figures[name]["parts"][part]["outcomes"] for name in (ALONE, MAIN))
        row = {"questions": f"{part} ({len(alone)})", "model alone": alone.count("right") / len(alone)}
        rows.append({**row, "repaired": repaired.count("right") / len(repaired)})
    repair = BackAttention.from_pretrained(ways_of[MAIN] / "repair")
    note = (
        f"Trained on {figures[MAIN]['n_train']} {config.kind} problems by `chainwright reproduce back-attention-real`; "
        "nothing in the table was trained on. Prompts are asked as they are (`raw=True`)."
    )
    origin = replace(repair.origin, figures=rows, note=note)
    shipped = BackAttention(repair.heads, positions=repair.positions, tokens=repair.tokens, origin=origin)
    return shipped.save_pretrained(folder, overwrite=overwrite)


def _cost(model: PreTrainedModel, config: ReproduceBackRealConfig, repeats: int) -> dict[str, Any]:
    """Return the record of what a token costs, relative to 1 + (L - s) / L."""
    n_layers = anatomy(model).n_layers
    repair = BackAttention.new(
        model, source=config.source, targets=read_depths(n_layers, config.source, config.every), d_back=config.d_back
    )
    ratio = token_ratio(model, repair, n_read=128, n_new=12, repeats=repeats)
    formula = 1 + (n_layers - config.source) / n_layers
    return {
        "finding": "flow-back-cost", "value": ratio / formula, "n": repeats, "n_what": "repeats",
        "shown": f"{ratio:.2f} times the model alone, {ratio / formula:.2f} of the formula's {formula:.2f}",
        "note": "Processor time per token after a prompt of 128 tokens, one thread.",
    }  # fmt: skip


__all__ = ["ReproduceBackReal", "run_back_real", "ship"]
