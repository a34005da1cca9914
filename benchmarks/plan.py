"""What `chainwright plan` predicts beside what runs take: every part of its jobs, on models of three sizes.

Random Llamas (and whatever --models names) run each part once: answers, scores, head roles, continuations of prefixes,
right chains without heads, step maps, answers with StepFlow, and training back attention. Seconds are those of the
processor on one thread; memory is that of the tensors that a second run makes. The processor is measured first, as
`--device cpu` does.

    python benchmarks/plan.py                                # three sizes, about five minutes
    python benchmarks/plan.py --sizes small --parts scores heads
    python benchmarks/plan.py --sizes large --dtype bfloat16
    python benchmarks/plan.py --device-name h200             # on a GPU: seconds of the wall clock, as for that device
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from live_bytes import LiveBytes

from chainwright import StepFlow, generate, step_saliency
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.diagnose.heads.roles import head_roles
from chainwright.diagnose.pivots.continuations import Row, Trunks, continued
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_tokenizer
from chainwright.planning import parts as plan
from chainwright.planning.devices import Device, device
from chainwright.planning.parts import Contexts, Part, Setting, Texts
from chainwright.planning.shape import shape_of
from chainwright.planning.work import Passes
from chainwright.repair.back_attention.repair import BackAttention
from chainwright.repair.back_attention.training import AnswerTraining, train
from chainwright.repair.tcr.training_data import Lesson, outcomes
from chainwright.scoring import score_all
from chainwright.tasks import Problem
from chainwright.traces import Trace

FACTOR = 2.0
SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 1024},
    "medium": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
               "num_key_value_heads": 2, "vocab_size": 8192},
    "large": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
              "num_key_value_heads": 4, "vocab_size": 32768},
}  # fmt: skip
SCALES = {"small": 3.0, "medium": 1.5, "large": 0.75}  # so that each part takes a second or more
_WORD = "start"


class Case(NamedTuple):
    """A part: what is predicted for it, and what runs it."""

    part: Part
    run: Callable[[], Any]


def make_model(size: str, dtype: str, on: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", max_position_embeddings=20000, dtype=dtype, **SIZES[size])
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).to(on).eval()


class Bench:
    """One model, and the cases that are run on it."""

    on: Device

    def __init__(self, size: str, dtype: str, where: str, scale: float = 1.0):
        self.model, self.setting, self.scale = make_model(size, dtype, where), Setting(dtype), scale
        self.parts, self.tokenizer = anatomy(self.model), load_tokenizer("reasoner")
        self.passes = Passes(shape_of(size, self.model), dtype)
        self.word = self.tokenizer(_WORD, add_special_tokens=False)["input_ids"][0]

    def n(self, tokens: int) -> int:
        """Return a length or a number, scaled."""
        return max(2, round(tokens * self.scale))

    def trace(self, n_prompt: int, n_answer: int) -> Trace:
        ids = torch.randint(5, 100, (n_prompt + n_answer,), generator=torch.Generator().manual_seed(n_prompt))
        return Trace.from_ids(self.tokenizer, ids, n_prompt)

    def prompts(self, n: int, length: int) -> list[str]:
        return [" ".join([_WORD] * length)] * n

    def decode(self, n: int, prompt: int, answer: int, repair: StepFlow | None = None) -> list[Trace]:
        options: dict[str, Any] = {"max_new_tokens": answer, "raw": True, "progress": False, "repair": repair}
        return generate(self.model, self.tokenizer, self.prompts(n, prompt), **options)

    def answers(self) -> Case:
        n, prompt, answer = 8, self.n(96), self.n(24)
        texts = [Texts("", n, prompt, answer, answer)]
        part = plan.answering(self.passes, texts, self.on, self.setting)
        return Case(part, lambda: self.decode(n, prompt, answer))

    def scores(self) -> Case:
        prompt, answer = self.n(128), self.n(128)
        traces = [self.trace(prompt, answer)] * 8
        part = plan.scoring(self.passes, [Texts("", 8, prompt, answer, answer)], self.on)
        return Case(part, lambda: score_all(self.model, traces))

    def heads(self) -> Case:
        length, n = self.n(64), 2

        def contexts(seed: int) -> SlotContexts:
            ids = torch.randint(5, 100, (n, length), generator=torch.Generator().manual_seed(seed))
            tokens = torch.randint(5, 100, (n,), generator=torch.Generator().manual_seed(seed))
            return SlotContexts(ids, torch.ones_like(ids), tokens, (tokens + seed) % 100)

        config = RolesConfig()
        part = plan.locating(
            self.passes, Contexts(2 * n, length, 0), self.on, self.setting._replace(measured=config.measured)
        )
        return Case(part, lambda: head_roles(self.model, contexts(0), contexts(1), config=config))

    def continuations(self) -> Case:
        prompt, answer, n = self.n(64), self.n(64), 8
        ids = tuple([self.word] * (prompt + answer // 2))
        rows = [Row(ids, i, answer // 2) for i in range(n)]
        sampling = Sampling(temperature=1.0)
        part = plan.continuing(self.passes, prompt, answer, n, self.on, self.setting)
        return Case(part, lambda: continued(Trunks(self.parts), rows, sampling=sampling, seed=0, ends=set()))

    def chains(self) -> Case:
        prompt, answer, n, heads = self.n(96), self.n(64), 6, [(0, 0), (1, 1), (2, 2), (3, 3)]
        lessons = [Lesson([self.word] * (prompt + answer), prompt, "t", ["structure"] * answer)] * n
        every = round(1 / plan.DOUBTFUL)

        def doubtful(entropy: Tensor, is_right: Tensor, features: Tensor) -> Tensor:
            return torch.arange(len(entropy)) % every == 0

        part = plan.teaching(self.passes, [Texts("", n, prompt, answer, answer)], len(heads), self.on, name="chains")
        return Case(part, lambda: outcomes(self.parts, lessons, heads, layers=(0, 3), doubtful=doubtful))

    def maps(self) -> Case:
        length, step = self.n(768), 24
        ids = torch.randint(5, 100, (length,), generator=torch.Generator().manual_seed(0))
        steps = [(i, min(i + step, length)) for i in range(0, length, step)]
        part = plan.mapping(self.passes, 1, length, len(steps), self.on, self.setting)
        return Case(part, lambda: step_saliency(self.model, (ids, steps)))

    def stepflow(self) -> Case:
        n, prompt, answer = 8, self.n(96), self.n(24)
        texts = [Texts("", n, prompt, answer, answer)]
        repair = StepFlow(style="plain", tokenizer=self.tokenizer)
        part = plan.bridging(self.passes, texts, self.on, self.setting)
        return Case(part, lambda: self.decode(n, prompt, answer, repair))

    def back(self) -> Case:
        length, rows, n_steps = self.n(32), 16, 2
        question = " ".join([_WORD] * (length - 1))
        problems = [Problem(task="t", hops=1, prompt=question, chain="", slots=(), answer="7")]
        repair = BackAttention.new(self.model, source=0)
        heads = torch.nn.ModuleList([head.to(self.parts.device, self.parts.model.dtype) for head in repair.heads])
        heads.requires_grad_(True)
        config = AnswerTraining(n_steps=n_steps, batch_size=rows)
        part = plan.reading_back(self.passes, n_steps, length, 1, 1.0, self.on, self.setting._replace(batch_size=rows))

        def run() -> None:
            from chainwright.edits import edit

            with edit(self.model, repair._edit_of(list(heads))):
                train(self.model, self.tokenizer, heads.parameters(), problems, config)

        return Case(part, run)


CASES: dict[str, Callable[[Bench], Case]] = {
    "answers": Bench.answers, "scores": Bench.scores, "heads": Bench.heads, "continuations": Bench.continuations,
    "chains": Bench.chains, "maps": Bench.maps, "stepflow": Bench.stepflow, "back": Bench.back,
}  # fmt: skip


def measured(run: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, int]:
    """Return the seconds of a run, the lesser of two where it is short, and the most bytes that its tensors took."""
    with LiveBytes() as seen:
        run()  # warms up
    took = []
    for _ in range(3):
        started = clock()
        run()
        took.append(clock() - started)
        if sum(took) > 8:
            break
    return min(took), seen.peak


def run_all(
    sizes: Sequence[str], names: Sequence[str], dtype: str, on: str = "cpu", scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return a row per size and part: predicted and measured seconds and bytes."""
    rows = []
    where = "cpu" if on == "cpu" else "cuda"
    clock = time.process_time if where == "cpu" else time.perf_counter
    for size in sizes:
        bench = Bench(size, dtype, where, scale * SCALES[size])
        for name in names:
            # measured beside each run, since what else runs on the machine changes
            shape = bench.passes.shape
            bench.on = device(on, width=shape.d_model, n_weights=shape.in_layers, clock=time.process_time)
            case = CASES[name](bench)
            seconds, n_bytes = measured(case.run, clock)
            rows.append(
                {"size": size, "part": name, "predicted": case.part.seconds, "measured": seconds,
                 "bytes": case.part.bytes, "seen": n_bytes}
            )  # fmt: skip
            print(line(rows[-1]), flush=True)
    return rows


HEADER = (
    f"{'size':8} {'part':14} {'predicted s':>12} {'measured s':>11} {'ratio':>6} {'predicted MB':>13} "
    f"{'measured MB':>12} {'ratio':>6}"
)


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['size']:8} {row['part']:14} {row['predicted']:12.2f} {row['measured']:11.2f} "
        f"{row['predicted'] / row['measured']:6.2f} {row['bytes'] / 1e6:13.1f} {row['seen'] / 1e6:12.1f} "
        f"{row['bytes'] / row['seen']:6.2f}"
    )


def off(rows: Sequence[dict[str, Any]], factor: float) -> list[str]:
    """Return which predictions of time are off by more than a factor, and which of memory are too low by as much."""
    found = []
    for row in rows:
        ratio = row["predicted"] / row["measured"]
        if not 1 / factor <= ratio <= factor:
            found.append(f"{row['size']} {row['part']}: time x {ratio:.2f}")
        if row["bytes"] * factor < row["seen"]:
            found.append(f"{row['size']} {row['part']}: memory x {row['bytes'] / row['seen']:.2f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device-name", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on lengths")
    parser.add_argument("--factor", type=float, default=FACTOR, help="off by more than this ends with status 1")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(device(asked.device_name, clock=time.process_time).assumptions())
    print(HEADER)
    rows = run_all(asked.sizes, asked.parts, asked.dtype, asked.device_name, asked.scale)
    wrong = off(rows, asked.factor)
    print(f"All within a factor of {asked.factor:g}." if not wrong else "Off: " + "; ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
