"""The provider: it loads the model once, and has an engine decode all samples that run at the same time together.

1. `inspect eval TASK --model chainwright/NAME -M repair=REPAIR`: NAME is what `load_model` takes; the other arguments
   are those of `ChainwrightAPI`.
2. Samples that inspect runs at the same time are rows of one batch (`chainwright.integrations.server.engine`), which
   they enter and leave between two tokens. Each text is the one that `generate` writes.
3. Draws depend on the seed, the epoch and the number of the choice: epoch e with n choices gives the samples
   `(e - 1) n ... e n - 1` of `generate`. Without a seed one is drawn for each request, and noted in its metadata.
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from anyio import CapacityLimiter, to_thread
from inspect_ai._util.error import PrerequisiteError  # inspect prints the message of this one alone
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelCall, ModelOutput
from inspect_ai.solver._task_state import sample_state  # the only place that knows the epoch
from inspect_ai.tool import ToolChoice, ToolInfo

from chainwright._errors import BadInput, ChainwrightError, TooLong, unknown_name
from chainwright._version import __version__
from chainwright.integrations._repairs import repair_names
from chainwright.integrations.inspect.answers import KEY, Answers, too_long
from chainwright.integrations.inspect.asking import asked_of, check_config, check_tools
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.choice import Choice, Wanted
from chainwright.integrations.server.engine import Engine
from chainwright.models.load import load_model, provenance
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import Prompt, prompt_from
from chainwright.repair.base import Repair

_NO_END = float("inf")  # inspect has time limits of its own, which cancel a request
_MOST = 2**31  # it also decides how many requests wait


class NotUsable(BadInput, PrerequisiteError):  # type: ignore[misc]
    """A model or an argument that cannot be used; inspect prints its sentence without a traceback."""

    def __init__(self, sentence: str):
        super().__init__(sentence)
        self.message = sentence


class ChainwrightAPI(ModelAPI):  # type: ignore[misc]
    """A model of `load_model`, decoding with or without repairs.

    Args:
        model_name: A name as for `load_model`.
        base_url, api_key: Of other providers; this one refuses them.
        config: How it is to be asked.
        repair: Bundled names, folders or Hub ids of repairs, as a list or joined by `+`; None decodes without any.
        adapter: Folder of a PEFT adapter, merged into the weights.
        device, dtype, revision, trust_remote_code: As for `load_model`.
        max_batch: Samples that decode together.
        chat_template_kwargs: What the chat template is passed, such as `{"enable_thinking": False}`.
        **unknown: Refused by name.

    Raises:
        NotUsable: The model, the adapter or a repair does not exist or does not fit, or an argument is unknown.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        repair: str | Sequence[str] | None = None,
        adapter: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_batch: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ):
        config = config or GenerateConfig()
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            _check_arguments(base_url, api_key, max_batch, chat_template_kwargs, unknown)
            check_config(config)
            names = repair_names(repair)
            self.repairs = {name: Repair.from_pretrained(name) for name in names}
            self.model, self.tokenizer = load_model(
                model_name,
                adapter=adapter,
                device=device,
                dtype=None if dtype == "auto" else dtype,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
            self.max_batch, self.template = max_batch, dict(chat_template_kwargs or {})
            self._service: Service | None = None
            self._starting = threading.Lock()
            self._names = self.service.engine.together(names)
        except ChainwrightError as error:
            raise NotUsable(str(error)) from error
        self._about = {"version": __version__, "fingerprint": provenance(self.model)["fingerprint"]}

    @property
    def service(self) -> Service:
        """Return the model with its engine, which is started if it does not run."""
        with self._starting:
            if self._service is None:
                engine = Engine(
                    self.model,
                    self.tokenizer,
                    self.repairs,
                    max_batch=self.max_batch,
                    max_waiting=_MOST,
                    timeout=_NO_END,
                )
                self._service = Service(self.model_name, engine)
            return self._service

    def close(self) -> None:
        """Stop the engine; another request starts it again."""
        with self._starting:
            service, self._service = self._service, None
        if service is not None:
            service.engine.stop()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput | tuple[ModelOutput, ModelCall]:
        """Return the answers to a conversation.

        Raises:
            BadInput: Something that cannot be done is asked for.
            RuntimeError: The pass that it was in failed.
        """
        check_tools(tools, tool_choice)
        service, epoch = self.service, _epoch()
        seed = random.getrandbits(32) if config.seed is None else config.seed
        asked = asked_of(input, config, self._names, self.template, seed)
        try:
            question = service.chat_question(asked)
            prompt = prompt_from(self.model, self.tokenizer, 0, question, config.max_tokens)
        except TooLong as error:
            return too_long(self.model_name, str(error))
        wanted = service.wanted(asked, [prompt])
        first = (epoch - 1) * len(wanted)
        choices = await self._written([replace(one, index=first + one.index) for one in wanted])
        about: dict[str, Any] = {**self._about, "repairs": list(self._names)}
        if config.temperature:
            about |= {"seed": seed, "first_sample": first}
        answers = Answers(self.model_name, self.tokenizer, prompt, choices, n_positions(self.model))
        _count_in_sample("+".join([self.model_name, *self._names]), answers)
        return answers.output(about), self._call(prompt, choices)

    async def _written(self, wanted: Sequence[Wanted]) -> list[Choice]:
        """Return answers when all of them are over; cancel them if nobody waits any more.

        Raises:
            RuntimeError: The pass of one of them failed.
        """
        over: Future[None] = Future()
        n_open = len(wanted)

        def on_change(choice: Choice) -> None:  # in the engine's thread, once for each
            nonlocal n_open
            n_open -= 1
            if not n_open:
                over.set_result(None)

        choices = self.service.engine.submit(wanted, on_change, streams=False)
        try:
            await to_thread.run_sync(over.result, abandon_on_cancel=True, limiter=CapacityLimiter(1))
        finally:
            for choice in choices:
                choice.cancelled.set()  # harmless where it is over
        if failures := [choice.failure for choice in choices if choice.failure is not None]:
            raise RuntimeError(failures[0].message)
        return choices

    def _call(self, prompt: Prompt, choices: Sequence[Choice]) -> ModelCall:
        """Return what the model read and wrote, as texts with all markers."""
        request = {"prompt": self.tokenizer.decode(prompt.ids), "max_new_tokens": prompt.max_new_tokens}
        written = [self.tokenizer.decode([one.token for one in choice.written]) for choice in choices]
        return ModelCall.create(request, {"texts": written})

    async def count_text_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_connections(self) -> int:
        """Return how many samples run at the same time unless it is said: as many as decode together."""
        return self.max_batch


def _check_arguments(
    base_url: str | None, api_key: str | None, max_batch: Any, template: Any, unknown: Mapping[str, Any]
) -> None:
    """Raise BadInput for an argument that is unknown or of no use."""
    known = [
        name
        for name, one in inspect.signature(ChainwrightAPI.__init__).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    ]
    for name in unknown:
        raise unknown_name("argument (-M) of the provider 'chainwright'", name, known)
    for name, value in (("base_url", base_url), ("api_key", api_key)):
        if value is not None:
            raise BadInput(f"{name} is for models that a server has; 'chainwright' runs them itself, so take it out.")
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
        raise BadInput(f"max_batch must be a number of samples, at least 1; got {max_batch!r}.")
    if template is not None and not isinstance(template, Mapping):
        raise BadInput(
            f"chat_template_kwargs must be values by name, such as '{{enable_thinking: false}}'; got {template!r}."
        )


def _epoch() -> int:
    """Return the epoch of the sample that runs; 1 outside of an eval."""
    state = sample_state()
    return 1 if state is None else int(state.epoch)


def _count_in_sample(name: str, answers: Answers) -> None:
    """Add what the repairs did to the metadata of the sample that runs, under the model's name."""
    state = sample_state()
    if state is None:
        return
    n_new = sum(len(choice.written) for choice in answers.choices)
    all_counts = state.metadata.get(KEY, {})
    before = all_counts.get(name, {})
    now = {"calls": 1, "new_tokens": n_new, **answers.counts()}
    sums = {count: value + before.get(count, 0) for count, value in now.items()}
    # a new table, since the old one may be that of the data set
    state.metadata = {**state.metadata, KEY: {**all_counts, name: sums}}
