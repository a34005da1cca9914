"""The model `chainwright` of lm-evaluation-harness: its Hugging Face model, decoding and scoring under a repair.

1. `pretrained` is any name that `load_model` takes; `repair` is a bundled repair, a folder or a Hub id, several joined
   by `+`; `adapter` is the folder of a PEFT adapter. The other arguments are those of the harness's `hf` model.
2. Requests to generate run under the repair inside `model.generate`. Stop strings wait while the thinking is open.
3. Log-likelihoods under a repair come from `score_all`. The harness's own scoring reads whole rows in one pass, in
   which a repair that decides token by token never acts.

The harness finds the model by its entry point (group `lm_eval.models`). Versions that read no entry points need this
module to be imported first, which `chainwright lm-eval` does.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from chainwright._errors import BadInput, unknown_name
from chainwright._version import __version__
from chainwright.decode.ending import Endings
from chainwright.decode.run import check_sampling, in_order, padding, prefilled
from chainwright.decode.sampling import Sampling
from chainwright.integrations._repairs import named_repair
from chainwright.models.load import end_ids, load_model, provenance
from chainwright.prompts.prompt import n_prefilled_of
from chainwright.prompts.templates import thinks
from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed
from chainwright.repair.run import Cost
from chainwright.scoring import score_all
from chainwright.traces import Trace

_LOGGER = logging.getLogger(__name__)
_OF_ANOTHER_LOADER = (
    "backend", "subfolder", "use_fast_tokenizer", "parallelize", "max_memory_per_gpu", "max_cpu_memory",
    "offload_folder", "tp_plan", "peft", "delta", "autogptq", "gptqmodel", "gguf_file", "mixed_precision_dtype",
)  # fmt: skip
"""Arguments of the harness's `hf` model that say how it loads, which `load_model` does here."""
_INSTEAD = {"peft": "adapter=FOLDER", "gguf_file": "pretrained=FILE.gguf"}
_CLOSES_THINKING = "</think>"
_CHUNK = 32  # batches that are scored between two steps of the progress bar


@register_model("chainwright")
class ChainwrightLM(HFLM):  # type: ignore[misc]
    """A model of `load_model`, evaluated with or without a repair.

    Args:
        pretrained: A name as for `load_model`, or a model that was loaded before; then pass `tokenizer` too.
        repair: Name, folder or Hub id of a repair, several joined by `+`; or a repair. None evaluates the model alone.
        adapter: Folder of a PEFT adapter, merged into the weights.
        device, dtype, revision, trust_remote_code: As for `load_model`.
        batch_size: Rows per batch, or "auto".
        think_end_token: What ends the thinking; only the text after it is judged. None takes `</think>` for a model
            whose chat template makes it think with that marker.
        **options: Of the harness's `hf` model: max_length, truncation, add_bos_token, prefix_token_id, enable_thinking,
            chat_template_args and the like.

    Raises:
        BadInput: The model, the adapter or the repair does not exist or does not fit, or an argument is unknown or
            belongs to another way of loading.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        repair: Any = None,
        adapter: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | None = None,
        dtype: str | None = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        think_end_token: str | int | None = None,
        **options: Any,
    ):
        _check_options(options)
        model: Any = pretrained
        if isinstance(pretrained, str):
            kind = None if dtype == "auto" else dtype
            if str(device).startswith("cuda") and not torch.cuda.is_available():
                _LOGGER.info(
                    "There is no CUDA device, so the model runs on the CPU."
                )  # cuda:0 is the harness's default
                device = None
            named: dict[str, Any] = {"adapter": adapter, "revision": None if revision == "main" else revision}
            model, tokenizer = load_model(
                pretrained, device=device, dtype=kind, trust_remote_code=trust_remote_code, **named
            )
        elif adapter is not None:
            raise BadInput("adapter is merged while a model is loaded; pass pretrained as a name, or merge it before.")
        if tokenizer is None:
            raise BadInput("A model that was loaded before needs its tokenizer; pass tokenizer=... too.")
        self.repair = named_repair(repair) if isinstance(repair, str) else repair
        if self.repair is not None:
            self.repair.check_model(model)
        self.total = Cost()
        end = think_end_token if think_end_token is not None or not _marks_thinking(tokenizer) else _CLOSES_THINKING
        with _without_warnings():
            super().__init__(
                model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, think_end_token=end, **options
            )
        self.pretrained = pretrained if isinstance(pretrained, str) else provenance(model)["model"]

    @contextmanager
    def _repaired(self) -> Iterator[None]:
        """Decode with the repair, and count what it cost."""
        if self.repair is None:
            yield
            return
        with self.repair.attached(self.model):
            yield
        self.total = _sum(self.total, self.repair.cost)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """Return prompts with what the model wrote, `[N, T]`.

        Args:
            context: Prompts, padded on the left.
            max_length: Tokens of prompt and response.
            stop: Stop strings.
            **generation_kwargs: Of `model.generate`; `attention_mask` is among them.
        """
        kwargs = _greedy_by_default(generation_kwargs)
        self._check_sampling(kwargs)
        mask = kwargs["attention_mask"].bool()
        prompts = [row[kept].tolist() for row, kept in zip(context, mask, strict=True)]
        n_prefilled = [self._n_prefilled(ids) for ids in prompts]
        endings = Endings.of(self.tokenizer, [text for text in stop if text], None, None)
        ends = end_ids(self.model, self.tokenizer) | endings.end_ids
        n_questions = [len(ids) - n for ids, n in zip(prompts, n_prefilled, strict=True)]
        watch = endings.watch(prompts, n_questions, [()] * len(prompts)) if endings.are_watched else None
        with self._repaired(), prefilled(self.model, n_prefilled):
            written: Tensor = self.model.generate(
                input_ids=context,
                max_length=max_length,
                eos_token_id=sorted(ends) or None,
                pad_token_id=padding(self.model, self.tokenizer, ends, is_end=watch is not None),
                stopping_criteria=StoppingCriteriaList([] if watch is None else [watch]),
                use_cache=True,
                **kwargs,
            )
        return written

    def _check_sampling(self, kwargs: dict[str, Any]) -> None:
        """Raise BadInput where a repair's logits would not mean what the sampling takes them for."""
        if self.repair is None:
            return
        own = getattr(self.model.generation_config, "repetition_penalty", None)
        check_sampling(in_order(self.repair), Sampling(repetition_penalty=kwargs.get("repetition_penalty", own)))
        if kwargs.get("num_beams", 1) > 1 and self.repair.decides_tokens:
            raise BadInput(
                f"A {self.repair.kind} repair decides single tokens, which beams do not have; leave num_beams out."
            )

    def _n_prefilled(self, ids: list[int]) -> int:
        """Return how many of the last tokens of a prompt begin the response (the harness's `gen_prefix`)."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return n_prefilled_of(self.tokenizer, text, ids)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return log-probability of each continuation, and whether it is what greedy decoding would write.

        Args:
            requests: (texts, tokens of the context, tokens of the continuation).
            disable_tqdm: Show no progress bar.
            override_bs: Rows per batch, in place of the model's own.
        """
        if self.repair is None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)  # type: ignore[no-any-return]
        size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else None)
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(order), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for start in range(0, len(order), _CHUNK * (size or 1)):
                part = order[start : start + _CHUNK * (size or 1)]
                for i, answer in zip(part, self._scored([requests[i][1:] for i in part], size), strict=True):
                    answers[i] = answer
                    if requests[i][0] is not None:  # a window of a text that is scored as a whole has none
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                bar.update(len(part))
        return [answers[i] for i in range(len(requests))]

    def _scored(self, rows: Sequence[tuple[list[int], list[int]]], batch_size: int | None) -> list[tuple[float, bool]]:
        """Return the log-probability of each row's continuation under the repair, and whether it is the likeliest."""
        traces, starts = [], []
        for context, continuation in rows:
            ids = (context + continuation)[-self.max_length :]
            if len(continuation) >= len(ids):
                raise BadInput(
                    f"A continuation has {len(continuation)} tokens, which leaves no context within max_length "
                    f"{self.max_length}; score shorter ones, or raise max_length."
                )
            starts.append(len(ids) - len(continuation))
            traces.append(Trace.from_ids(self.tokenizer, ids, starts[-1]))
        scores = score_all(self.model, traces, repair=self.repair, batch_size=batch_size)
        return [
            (float(score.logprob[n:].sum()), bool((score.argmax[n:].cpu() == trace.input_ids[n:].cpu()).all()))
            for trace, n, score in zip(traces, starts, scores, strict=True)
        ]

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness's results say about the model: its weights, the repair, and what that cost."""
        info: dict[str, Any] = {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": self.revision,
            "model_sha": provenance(self.model)["fingerprint"],
            "chainwright": __version__,
        }
        if self.repair is None:
            return info | {"repair": None}
        cost = {name: value for name, value in asdict(self.total).items() if name != "parts"}
        return info | {
            "repair": self.repair.kind,
            "repair_settings": _settings(self.repair),
            "repair_made_for": dict(self.repair.origin.model),
            "repair_cost": cost | {"slowdown": round(self.total.slowdown, 3)},
        }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the harness where it warns that it did not load the model itself, about which nothing is to be done."""
    logger = logging.getLogger(HFLM.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _settings(repair: Repair) -> dict[str, Any]:
    parts = repair.repairs if isinstance(repair, Composed) else (repair,)
    return {part.kind: part.settings() for part in parts}


def _check_options(options: dict[str, Any]) -> None:
    """Raise BadInput for an argument that is unknown, or that says how the harness's own loader loads."""
    known = [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
    usable = [name for name in known if name not in _OF_ANOTHER_LOADER] + ["repair", "adapter"]
    for name, value in options.items():
        if name in _OF_ANOTHER_LOADER:
            if value in (None, False, ""):
                continue
            instead = f"pass {_INSTEAD[name]}" if name in _INSTEAD else "take it out"
            raise BadInput(
                f"{name} belongs to the harness's own loader, and this model is loaded otherwise; {instead}."
            )
        if name not in usable:
            raise unknown_name("argument of model 'chainwright'", name, usable)
    for name in _OF_ANOTHER_LOADER:
        options.pop(name, None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("Model 'chainwright' runs in one process; start it without accelerate launch or torchrun.")


def _marks_thinking(tokenizer: PreTrainedTokenizerBase) -> bool:
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return thinks(tokenizer) and any(_CLOSES_THINKING in text for text in texts)


def _greedy_by_default(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `model.generate` for a request: greedy without a temperature, as the harness has it."""
    kwargs = {"temperature": 0.0} | kwargs
    if kwargs["temperature"] == 0.0 and not kwargs.get("do_sample"):
        return {name: value for name, value in kwargs.items() if name != "temperature"} | {"do_sample": False}
    return kwargs


def _sum(first: Cost, second: Cost) -> Cost:
    """Return what two runs took together, without the parts of each repair."""
    sums: dict[str, Any] = {}
    for name in (field.name for field in fields(Cost) if field.name != "parts"):
        values = [value for cost in (first, second) if (value := getattr(cost, name)) is not None]
        sums[name] = sum(values) if values else None
    return Cost(**sums)
