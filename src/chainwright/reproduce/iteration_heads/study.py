"""Reproducing the findings on iteration heads (arXiv 2406.02128), and looking for such heads in a trained reasoner.

1. Every training of the laboratory is a unit of a study: copy, parity and polynomial iteration over several seeds, with
   and without a chain of thought, parity after the polynomial task and from scratch, and the polynomial task with other
   sizes and position embeddings.
2. The bundled reasoner writes chains of each task; its heads are scored, silenced, and compared with those that right
   tokens need.
3. The claims (`iteration_claims`) are read off the results; each says what was published and what came out.

The quick profile keeps models and lengths small, the full one goes to the paper's sizes, and with none nothing is
trained: only the heads of a model are looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from chainwright import tasks
from chainwright._config import Config, Positions
from chainwright._errors import unknown_name
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.diagnose.heads.knockout import knockout_effects
from chainwright.diagnose.iteration.emergence import Emergence
from chainwright.diagnose.iteration.findings import IterationOverlap, IterationScores
from chainwright.diagnose.iteration.scores import IterationSettings, iteration_overlap, iteration_scores
from chainwright.diagnose.iteration.step_slots import trace_steps
from chainwright.lab import IterationConfig, ReasonerConfig, train_iteration
from chainwright.models import load_model
from chainwright.models.load import LoadedModel, load_as, provenance
from chainwright.models.padding import left_pad
from chainwright.prompts.rendering import rendering_for
from chainwright.studies import Job, Plan, Results, Skip, Study, Watch
from chainwright.studies.config import Count, Place
from chainwright.studies.diagnosis.usual import trained_hops
from chainwright.studies.manifest import Manifest
from chainwright.tasks import usual_hops
from chainwright.traces import Trace

PROFILES = ("quick", "full", "none")
Recipes = dict[str, dict[str, Any]]


def recipes(profile: str) -> Recipes:
    """Return what differs from the default recipe in each training, by name, in the order of training.

    Raises:
        BadInput: An unknown profile.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    return {"quick": _quick, "full": _full, "none": dict}[profile]()


def _quick() -> Recipes:
    """Return trainings of about a minute each at length 12, where the polynomial task is learned within 800 steps."""
    found: Recipes = {}
    for seed in range(3):
        found[f"polynomial-seed{seed}"] = {"n_steps": 800, "seed": seed}
        moved = {"tasks": {"parity": 1.0}, "n_steps": 300, "measure_every": 25, "seed": seed}
        found[f"parity-after-polynomial-seed{seed}"] = {**moved, "start_from": f"train/polynomial-seed{seed}"}
        found[f"parity-seed{seed}"] = {"tasks": {"parity": 1.0}, "n_steps": 1100, "seed": seed}
    for seed in range(2):
        found[f"copy-seed{seed}"] = {"tasks": {"copy": 1.0}, "embedding_std": 0.5, "n_steps": 800, "seed": seed}
    found["polynomial-without-chain"] = {"chain_of_thought": False, "n_steps": 800}
    found["parity-without-chain"] = {"tasks": {"parity": 1.0}, "chain_of_thought": False, "n_steps": 1100}
    changed = {"width-16": {"d_model": 16}, "width-32": {"d_model": 32}, **_ablations()}
    lengths: Recipes = {
        "length-8": {"max_length": 8, "n_steps": 1200},
        "length-16": {"max_length": 16, "n_steps": 1000},
    }
    for name, change in {**changed, **lengths}.items():
        found[f"polynomial-{name}"] = {"n_steps": 800, **change}
    return found


def _ablations() -> Recipes:
    return {
        "layers-1": {"n_layers": 1},
        "layers-3": {"n_layers": 3},
        "rotary": {"positions": "rotary"},
        "no-positions": {"positions": "none"},
    }


def _full() -> Recipes:
    found: Recipes = {}
    common = {"d_model": 128, "batch_size": 256, "max_length": 16, "measure_every": 200}
    widths: Recipes = {f"width-{d}": {"d_model": d} for d in (16, 32, 64)}
    lengths: Recipes = {f"length-{n}": {"max_length": n} for n in (8, 24)}
    for seed in range(5):
        for task, std in (("copy", 0.5), ("parity", 1.0), ("polynomial", 1.0)):
            run = {**common, "tasks": {task: 1.0}, "embedding_std": std, "n_steps": 10_000, "seed": seed}
            found[f"{task}-seed{seed}"] = run
            found[f"{task}-without-chain-seed{seed}"] = {**run, "chain_of_thought": False}
        moved = {**common, "tasks": {"parity": 1.0}, "n_steps": 1000, "measure_every": 50, "seed": seed}
        found[f"parity-after-polynomial-seed{seed}"] = {**moved, "start_from": f"train/polynomial-seed{seed}"}
        found[f"polynomial-length-32-seed{seed}"] = {**common, "max_length": 32, "n_steps": 20_000, "seed": seed}
        for name, change in {**widths, **_ablations(), **lengths}.items():
            found[f"polynomial-{name}-seed{seed}"] = {**common, "n_steps": 10_000, "seed": seed, **change}
    return found


def _longest_hops() -> dict[str, int]:
    """Return the most hops of each task that the reasoner was trained on."""
    return {task: longest for task, (_, longest) in ReasonerConfig().hops.items()}


class ReasonerProbe(Config):
    """How the heads of the reasoner are scored."""

    model: Place = Field(default="reasoner", description="Model: a known name, a folder, a GGUF file or a Hub id.")
    hops: Mapping[str, Count] = Field(default_factory=_longest_hops, description="One hop count per task.")
    n: Count = Field(default=30, description="Problems per task.")
    seed: int = Field(default=0, description="Seed of the problems.")
    rendering: tasks.Rendering = Field(default="short", description="Wording of the problems.")
    adapter: str | None = Field(default=None, description="Folder of a PEFT adapter that is merged into the model.")
    effects: Positions = Field(
        default="all", description="Where heads are silenced for their effects: at all positions, or at the last."
    )
    n_contexts: Count = Field(
        default=16, description="Contexts per link in which heads are silenced for their effects."
    )
    n_shuffles: Count = Field(default=IterationSettings().n_shuffles, description="As in IterationSettings.")
    n_checked: Count = Field(default=IterationSettings().n_checked, description="As in IterationSettings.")
    n_controls: Count = Field(default=IterationSettings().n_controls, description="As in IterationSettings.")


# settings of a pretrained model, whose heads are many
_SPARING: Mapping[str, Any] = {"n": 8, "n_checked": 2, "n_controls": 4, "effects": "last", "n_contexts": 8}


def probe_for(model: str, adapter: str | None = None) -> ReasonerProbe:
    """Return how a model's heads are scored: a small model trained here as the reasoner, others more sparingly.

    Others are asked in English, with as many hops as their adapter was trained on, or else with the fewest usual ones.
    """
    rendering = rendering_for("auto", model)
    if rendering == "short":
        return ReasonerProbe(model=model, adapter=adapter)
    trained = trained_hops(model, adapter)
    hops = {task: trained[task][1] if task in trained else usual_hops(task, rendering)[0] for task in tasks.names()}
    return ReasonerProbe(model=model, adapter=adapter, hops=hops, rendering=rendering, **_SPARING)


@register("study", "iteration-heads")
class IterationHeadsPlan(Plan):
    """Every training of a profile, then the reasoner task by task."""

    kind = "iteration-heads"
    again = "chainwright study run {folder}"

    def __init__(self, runs: Recipes, reasoner: ReasonerProbe, loaded: LoadedModel, *, progress: bool = False) -> None:
        self.loaded, self.reasoner, self.progress = loaded, reasoner, progress
        self.recipes = {name: IterationConfig(**changes) for name, changes in runs.items()}
        self.config = {"recipes": runs, "reasoner": reasoner.record()}
        self.source = provenance(loaded.model)

    @classmethod
    def resumed(
        cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False
    ) -> IterationHeadsPlan:
        """Return the plan of a study that was begun; loads its model."""
        reasoner = ReasonerProbe.from_record(known.config["reasoner"])
        return cls(known.config["recipes"], reasoner, load_as(known.model, device="cpu"))

    def units(self, done: Results) -> Sequence[str]:
        """Return the trainings in order, then one unit per task."""
        return [*(f"train/{name}" for name in self.recipes), *(f"reasoner/{task}" for task in self.reasoner.hops)]

    def needs(self, unit: str) -> Sequence[str]:
        """Return the training that a training starts from."""
        kind, _, name = unit.partition("/")
        source = self.recipes[name].start_from if kind == "train" else None
        return [source] if source else []

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return every training, the scores of the reasoner's heads, and their overlaps."""
        found = IterationHeads.of(study.results)
        overlaps = [one for by_link in found.overlaps.values() for one in by_link.values()]
        return [*found.runs.values(), *found.scores.values(), *overlaps]

    def title(self, unit: str) -> str:
        """Return what a unit does."""
        kind, _, name = unit.partition("/")
        return f"training {name}" if kind == "train" else f"heads of {self.reasoner.model} on {tasks.title(name)}"

    def compute(self, job: Job) -> None:
        """Train, or look into the reasoner."""
        kind, _, name = job.unit.partition("/")
        with _one_thread():
            if kind == "train":
                self._train(job, self.recipes[name])
            else:
                self._look(job, name)

    def _train(self, job: Job, config: IterationConfig) -> None:
        run, source = job.out / "run", config.start_from
        if source:
            config = config.replace(start_from=str(job.done[source]))

        def tick(found: Emergence) -> None:
            job.tick(int(found.steps[-1]), config.n_steps)

        found = train_iteration(config, run, keep_checkpoints=False, on_checkpoint=tick, progress=self.progress)
        # the folder of the study is no part of what was found
        recorded = {**found.config, "start_from": source}
        replace(found, config=recorded).save(job.out / "emergence")
        for path in run.iterdir():
            if path.is_file() and path.name != "recipe.json":
                shutil.move(path, job.out / path.name)
        shutil.rmtree(run)

    def _look(self, job: Job, task: str) -> None:
        model, tokenizer = self.loaded
        asked = self.reasoner
        problems = tasks.sample(task, asked.hops[task], asked.n, seed=asked.seed, rendering=asked.rendering)
        traces = generate(model, tokenizer, problems, progress=False)
        settings = IterationSettings(
            n_shuffles=asked.n_shuffles, n_checked=asked.n_checked, n_controls=asked.n_controls
        )
        if not any(trace_steps(tokenizer, trace) for trace in traces):
            raise Skip(f"no chain of {task} is right up to its first result")
        scores = iteration_scores(model, tokenizer, traces, settings=settings)
        where = {"task": task, "hops": asked.hops[task], "seed_of_problems": asked.seed}
        scores = replace(scores, config={**scores.config, **where})
        scores.save(job.out / "scores")
        effects = {link: _effect(self.loaded, traces, link, asked) for link in scores.links}
        for link, effect in effects.items():
            iteration_overlap(scores, effect, link=link).save(job.out / f"overlap-{link}")  # type: ignore[arg-type]
        save_file(effects, job.out / "effects.safetensors")


class _one_thread:
    """Small matrices are multiplied fastest, and to the same bits, by one thread."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.before)


def _effect(loaded: LoadedModel, traces: Sequence[Trace], link: str, asked: ReasonerProbe) -> Tensor:
    """Return the probability that right tokens lose without each head, `[L, H]`, mean over contexts of a link.

    A context ends before the first token that the link's position emits, at another step in each trace.
    """
    rows: list[list[int]] = []
    right: list[int] = []
    for i, trace in enumerate(traces):
        steps = [s for s in trace_steps(loaded.tokenizer, trace) if link != "previous" or s.previous]
        emitted = [(s.restated if link == "recall" else s.result)[:1] for s in steps]
        places = [at[0] for at in emitted if at]
        if places and len(rows) < asked.n_contexts:
            at = places[i % len(places)]
            rows.append(trace.input_ids[:at].tolist())
            right.append(int(trace.input_ids[at]))
    input_ids, mask = left_pad(rows, 0, torch.device("cpu"))
    found = knockout_effects(loaded.model, input_ids, torch.tensor(right), attention_mask=mask, positions=asked.effects)
    return found.effect.mean(0)


@dataclass(frozen=True)
class IterationHeads:
    """What a reproduction found.

    Attributes:
        runs: Emergence of each training, by name.
        scores: Iteration scores of the model that is looked at, by task.
        overlaps: Their overlap with the heads that right tokens need, by task and link.
    """

    runs: Mapping[str, Emergence]
    scores: Mapping[str, IterationScores]
    overlaps: Mapping[str, Mapping[str, IterationOverlap]]

    @property
    def model(self) -> str:
        """Return the name of the model whose heads were scored; empty if there is none."""
        return next((str(one.provenance.get("model", "")) for one in self.scores.values()), "")

    @classmethod
    def of(cls, done: Mapping[str, Path]) -> IterationHeads:
        """Return what finished units hold; unfinished ones are skipped."""
        runs = {u.partition("/")[2]: Emergence.load(p / "emergence") for u, p in done.items() if u.startswith("train/")}
        looked = {u.partition("/")[2]: p for u, p in done.items() if u.startswith("reasoner/")}
        scores = {task: IterationScores.load(path / "scores") for task, path in looked.items()}
        overlaps = {
            task: {link: IterationOverlap.load(looked[task] / f"overlap-{link}") for link in found.links}
            for task, found in scores.items()
        }
        return cls(runs, scores, overlaps)


def run_iteration_heads(
    folder: str | Path,
    *,
    profile: str = "quick",
    probe: ReasonerProbe | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    recompute: bool = False,
    watch: Watch | None = None,
) -> IterationHeads:
    """Run or resume a profile in a study folder, and return its results.

    `probe` names the model that is looked at, and how; `recompute` computes damaged units again.

    Raises:
        BadInput: An unknown profile or model, or a folder that cannot be used.
    """
    runs, probe = recipes(profile), probe or ReasonerProbe()
    loaded = load_model(probe.model, adapter=probe.adapter, dtype=dtype, device="cpu")
    plan = IterationHeadsPlan(runs, probe, loaded)
    return IterationHeads.of(Study.make(folder, plan, overwrite=overwrite).run(watch, recompute=recompute))
