"""The parts that jobs are made of, each as seconds and as memory beside the model, by counting what its code does.

The constants beside the formulas are those of the code itself, imported where it names them. Every part is compared
with a run by `benchmarks/plan.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chainwright.decode.run import usual_batch
from chainwright.diagnose.heads._sweep.estimate import passes_per_variant_row
from chainwright.diagnose.heads._sweep.options import n_screened
from chainwright.diagnose.heads._sweep.run import BYTES_AT_ONCE, BYTES_KEPT, HALVED_AT_ONCE
from chainwright.diagnose.heads.evidence import TOKENS_AT_ONCE as EVIDENCE_AT_ONCE
from chainwright.diagnose.heads.role_plan import SLOPES, WRITING
from chainwright.diagnose.heads.role_sweep import LARGE
from chainwright.diagnose.steps._attention_maps import BLOCK_BYTES
from chainwright.diagnose.steps.estimate import saliency_bytes, saliency_flops
from chainwright.planning.devices import Device
from chainwright.planning.work import Passes, Work
from chainwright.repair.tcr._teacher_forcing import LOGITS_AT_ONCE as SITES_AT_ONCE
from chainwright.repair.tcr.training_data import TOKENS_AT_ONCE
from chainwright.scoring import LOGITS_AT_ONCE, usual_scored

DOUBTFUL = 0.1  # share of the tokens of a chain that are looked at without heads
_A_BLOCK = 0.3  # starts of a layer that the operations on one block of attention weights take
_TRUNK_ROWS = 8  # continuations that run together, as `plan_pivots` takes them


class Setting(NamedTuple):
    """What can be set to make a job fit.

    Attributes:
        dtype: Number type of the model.
        batch_size: Rows decoded (or trained on) together; None as the code chooses.
        measured: Share of the heads that is silenced; the others are estimated.
        chunk: Bytes that a sweep over heads, or a block of step maps, may take; None as the code chooses.
    """

    dtype: str
    batch_size: int | None = None
    measured: float = 1.0
    chunk: int | None = None


class Part(NamedTuple):
    """What a part of a job takes.

    Attributes:
        name: What is done.
        seconds: How long.
        bytes: Memory beside the model's weights.
    """

    name: str
    seconds: float
    bytes: float


class Texts(NamedTuple):
    """Problems that are alike, in tokens.

    Attributes:
        task: What they belong to; contexts of one task are looked at together.
        n: How many.
        prompt: Tokens of a prompt.
        answer: Tokens of an answer.
        limit: Most tokens that an answer may have.
        shared: Tokens that all prompts begin with.
    """

    task: str
    n: int
    prompt: int
    answer: int
    limit: int
    shared: int = 0


def total(works: Sequence[Work], passes: Passes, on: Device) -> float:
    """Return the seconds of works one after the other."""
    return sum(work.seconds(on, passes.dtype) for work in works)


def answering(
    passes: Passes, texts: Sequence[Texts], on: Device, setting: Setting, *, n_samples: int = 1, name: str = "answers"
) -> Part:
    """Return what decoding answers takes: batches of the usual size, each until its longest answer ends."""
    seconds, most = 0.0, 0.0
    for cell in texts:
        rows = cell.n * n_samples
        size = min(rows, setting.batch_size or usual_batch(cell.prompt + cell.limit))
        batch = passes.decoding(size, cell.prompt, cell.answer)
        seconds += rows / size * total(batch, passes, on)
        whole = size * (cell.prompt + cell.answer) * passes.cache_bytes * (1 + 1 / passes.shape.n_layers)
        most = max(most, whole + passes.logits(size) + passes.inside(size))
        most = max(most, size * cell.prompt * passes.cache_bytes + passes.inside(size * cell.prompt))
    return Part(name, seconds, most)


def scoring(passes: Passes, texts: Sequence[Texts], on: Device) -> Part:
    """Return what scoring every token takes."""
    seconds, most = 0.0, 0.0
    for cell in texts:
        length = cell.prompt + cell.answer
        rows = min(cell.n, usual_scored(length))
        n = rows * length
        at_once = min(n, max(rows, LOGITS_AT_ONCE / passes.shape.d_vocab))
        reading = total(passes.unembedding(at_once), passes, on) * n / at_once
        seconds += cell.n / rows * (passes.forward(n, length / 2).seconds(on, passes.dtype) + reading)
        most = max(most, passes.inside(n), n * passes.shape.d_model * passes.size + passes.logits(at_once, 2))
    return Part("scores", seconds, most)


class Contexts(NamedTuple):
    """Contexts that heads are silenced in: how many, and their tokens, of which all begin with `shared`."""

    n: int
    length: int
    shared: int

    @property
    def tokens(self) -> int:
        """Return the tokens of all of them."""
        return self.n * self.length


def is_screened(passes: Passes) -> bool:
    """Return whether heads of a model are estimated first, as `RolesConfig(method="auto")` decides."""
    return passes.shape.in_layers >= LARGE


def locating(passes: Passes, contexts: Contexts, on: Device, setting: Setting, *, name: str = "heads") -> Part:
    """Return what `head_roles` takes in some contexts, the same formula as `plan_head_roles`."""
    s = passes.shape
    n_heads = s.n_layers * s.n_heads
    n_measured = n_screened(setting.measured, n_heads) if is_screened(passes) else n_heads
    shared = contexts.shared if contexts.n > 1 else 0
    run = shared + contexts.n * (contexts.length - shared)
    sweep = n_measured / n_heads * passes_per_variant_row(s.n_layers, s.n_heads) * run
    is_halved = on.waits and passes.dtype == "float32" and is_screened(passes)
    if is_halved:
        sweep *= on.rate("float32") / min(on.rate("bfloat16"), 1.6 * on.rate("float32"))
    at_last = n_heads / 2 * contexts.n
    screened = SLOPES * contexts.tokens + at_last + contexts.tokens if is_screened(passes) else 0.0
    n_tokens = contexts.tokens * (1 + WRITING) + sweep + screened
    at_once = setting.chunk or BYTES_AT_ONCE["cpu" if on.waits else "other"] * (HALVED_AT_ONCE if is_halved else 1)
    kept = setting.chunk or BYTES_KEPT["cpu" if on.waits else "other"]
    per_token = s.n_layers * (2 * s.d_model + s.n_heads * s.d_head) * passes.size
    state = s.d_model * passes.size
    a_call = max(1.0, at_once / (8 * state))  # tokens of the variants that run together
    work = passes.forward(a_call, contexts.length / 2).times(n_tokens / a_call)
    # direct writing: each layer is read with every head and without each, in both sets
    writing = 4 * s.n_layers * total(passes.unembedding(contexts.n / 4 * (s.n_heads + 1)), passes, on)
    waiting = min(kept, run * n_measured * state)
    most = min(kept, contexts.tokens * per_token) + waiting + at_once + _shared_terms(passes)
    return Part(name, work.seconds(on, passes.dtype) + writing, most)


def _shared_terms(passes: Passes) -> float:
    """Return the memory of what all knockouts of a layer share (`_sweep/same_layer.py`), kept in float32 alone."""
    s = passes.shape
    if passes.dtype != "float32":
        return 0.0
    attention = 2 * s.d_model * s.d_head * (s.n_heads + s.n_kv_heads)
    readers = 2 / 3 * max(0.0, s.per_token / s.n_layers - attention) / s.d_model
    return 4 * s.n_layers * s.n_heads * s.d_head * (s.d_model + readers)


def knocking(passes: Passes, contexts: Contexts, n: float, on: Device, *, name: str = "evidence") -> Part:
    """Return what n plain passes over contexts take."""
    rows = min(contexts.n, max(1, EVIDENCE_AT_ONCE // contexts.length))
    tokens = rows * contexts.length
    work = passes.forward(tokens, contexts.length / 2, rows).times(n * contexts.n / rows)
    return Part(name, work.seconds(on, passes.dtype), passes.inside(tokens) + passes.logits(rows))


def continuing(passes: Passes, prompt: float, answer: float, n: float, on: Device, setting: Setting) -> Part:
    """Return what n continuations of prefixes of an answer take, each half of it long, over one cache of the prefix."""
    rows = setting.batch_size or _TRUNK_ROWS
    step = passes.step(rows, prompt + 0.75 * answer).times(answer / 2)
    cache = (rows + 1) * (prompt + answer) * passes.cache_bytes
    return Part("continuations", n / rows * total([step], passes, on), cache + passes.logits(rows, 4))


def teaching(passes: Passes, texts: Sequence[Texts], n_heads: int, on: Device, *, name: str) -> Part:
    """Return what running right chains takes, once as they are and once without each of some heads."""
    seconds, most = 0.0, 0.0
    for cell in texts:
        length = cell.prompt + cell.answer
        rows = max(1, min(cell.n, TOKENS_AT_ONCE // length))
        n, doubtful = rows * length, DOUBTFUL * rows * cell.answer
        works = [
            passes.forward(n, length / 2),
            *passes.unembedding(rows * cell.answer),
            passes.forward(n, length / 2).times(n_heads),
            *(work.times(n_heads) for work in passes.unembedding(doubtful)),
        ]
        seconds += cell.n / rows * total(works, passes, on)
        at_once = min(rows * cell.answer, SITES_AT_ONCE / passes.shape.d_vocab)
        most = max(most, passes.inside(n) + n * passes.shape.d_model * passes.size + passes.logits(at_once, 4))
    return Part(name, seconds, most)


def mapping(passes: Passes, n: int, length: int, n_steps: int, on: Device, setting: Setting) -> Part:
    """Return what the step maps of n traces of one length take."""
    s = passes.shape
    products, attention = saliency_flops(
        s.n_weights - s.in_layers + s.per_token, s.n_layers, s.n_heads, s.d_head, length
    )
    block = setting.chunk // 3 if setting.chunk else BLOCK_BYTES["cpu" if on.waits else "other"]
    a_block = max(1.0, min(length, block / (4 * s.n_heads * length)))
    # float32 numbers of every weight that are written or read by the softmax, its backward pass and the sums
    walked = 45.0 * 4 * s.n_layers * s.n_heads * length * length / 2
    plain = passes.forward(length, length / 2)
    work = Work(
        flops=products,
        wide=attention,
        weights=3 * passes.weight_bytes,
        moved=walked + 3 * plain.moved,
        layers=s.n_layers * (3 + _A_BLOCK * length / a_block),
    )
    most = saliency_bytes(
        dtype_size=passes.size,
        n_layers=s.n_layers,
        n_heads=s.n_heads,
        d_head=s.d_head,
        d_model=s.d_model,
        d_vocab=s.d_vocab,
        n_block=int(s.per_token / s.n_layers),
        n_tokens=length,
        longest=length,
        n_steps=n_steps,
        block_bytes=block,
    )
    return Part(f"{n} maps of {length:,} tokens", n * work.seconds(on, passes.dtype), most)


def bridging(passes: Passes, texts: Sequence[Texts], on: Device, setting: Setting) -> Part:
    """Return what answering with StepFlow takes: weights of a quarter of the layers, and reading the text."""
    plain = answering(passes, texts, on, setting, name="answers with it")
    s = passes.shape
    quarter = max(1, s.n_layers // 4)
    seconds = 0.0
    for cell in texts:
        size = min(cell.n, setting.batch_size or usual_batch(cell.prompt + cell.limit))
        weights = quarter * size * s.n_heads * (cell.prompt + cell.answer / 2)
        more = Work(moved=6 * 4 * weights, layers=2 * quarter, texts=size)
        seconds += cell.n / size * cell.answer * more.seconds(on, passes.dtype)
    return Part(plain.name, plain.seconds + seconds, plain.bytes)


def reading_back(
    passes: Passes, n_steps: int, length: int, answer: int, share: float, on: Device, setting: Setting
) -> Part:
    """Return what training back attention takes.

    Args:
        passes: The model.
        n_steps: Optimizer steps.
        length: Tokens of a question with its answer.
        answer: Tokens of the answer.
        share: Share of the layers from the source on, which the gradient goes through.
        on: The device.
        setting: Its batch size counts.
    """
    rows = setting.batch_size or 1
    n = rows * length
    once = passes.forward(n, length / 2, n)
    above = passes.forward(n, length / 2, rows * answer, share=share)
    step = [once, above, above.times(2)]
    s = passes.shape
    # what the backward pass keeps of every layer for each token
    kept = n * share * s.n_layers * (2.5 * s.written + 8 * s.d_model) * passes.size
    return Part(
        "training", n_steps * total(step, passes, on), kept + passes.inside(n) + passes.logits(rows * answer, 4)
    )
