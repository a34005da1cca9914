"""Where requests enter: what they ask for is checked against the model, and refused in one sentence if it cannot be."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chainwright_vllm.patching import wrap
from chainwright_vllm.repairs import VARIABLE, Identity, Saved, check, check_model, find, identity, load, offered, read
from chainwright_vllm.spec import KEY, RUN, BadRequest, KnockOut, UseRepair, UseStepFlow, asked
from chainwright_vllm.stepflow import load_stepflow, reader
from chainwright_vllm.weights import check_weights, prepare, warn_unchecked
from chainwright_vllm.worker import readable_layers

ASYNC = "CHAINWRIGHT_VLLM_ASYNC"
_PROTOCOLS = (
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.responses.protocol", "ResponsesRequest"),
)


def install() -> None:
    """Check requests, and let the `vllm_xargs` of requests over HTTP hold objects."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(EngineArgs, "create_engine_config", _create_engine_config)
    wrap(InputProcessor, "__init__", _init)
    wrap(InputProcessor, "process_inputs", _process_inputs)
    for module, name in _PROTOCOLS:
        if module in sys.modules:  # only the process that serves HTTP has them
            request = getattr(sys.modules[module], name)
            _let_objects_in(request)
            if "to_beam_search_params" in vars(request):
                wrap(request, "to_beam_search_params", _to_beam_search_params)


def checked(extra_args: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return a request's extra arguments with what it asks for checked and canonical.

    Args:
        extra_args: Of its SamplingParams.
        config: vLLM's VllmConfig.

    Raises:
        BadRequest: It is malformed, or cannot be done on this model or in this configuration.
    """
    if RUN in extra_args:
        raise BadRequest(f"{RUN} is the plug-in's own; leave it out.")
    spec = asked(extra_args)
    if spec is None:
        return extra_args
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise BadRequest("chainwright: edits need all layers in one place; serve without pipeline parallelism.")
    if getattr(parallel, "enable_dbo", False):
        raise BadRequest("chainwright: edits cannot follow a batch that is split in two; serve without --enable-dbo.")
    model = identity(config.model_config)
    if isinstance(spec, (UseRepair, UseStepFlow)):
        spec = _checked_repair(spec, model, config)
    else:
        spec.check(model.shape)
    return {**extra_args, KEY: spec.record()}


def _checked_repair(spec: UseRepair | UseStepFlow, model: Identity, config: Any) -> UseRepair | UseStepFlow:
    """Return what a request asks for with the repair's folder in place of its name."""
    is_path = isinstance(spec, UseRepair) and spec.is_path
    folder = str(find(Path(spec.folder) if is_path else spec.folder))
    record = read(folder)
    made_for, is_stepflow = record["origin"]["model"], record["kind"] == "stepflow"
    if is_stepflow:
        check_model(made_for, model)
        flow = load_stepflow(folder, model.shape)
        reader(config.model_config.model, config.model_config.tokenizer, flow.style, flow.min_chars)
    else:
        _check_tcr(load(folder), model, config)
    check_weights(made_for, config)
    _check_configuration(config)
    return UseStepFlow(folder) if is_stepflow else UseRepair(folder)


def _check_tcr(saved: Saved, model: Identity, config: Any) -> None:
    check(saved, model)
    layers = {layer % model.shape.n_layers for layer in saved.tcr.layers}
    if unread := sorted(layers - readable_layers(config.model_config)):
        raise BadRequest(
            f"chainwright: the repair reads layer {unread[0]}, which this server's compiled model does not give out; "
            f"offer the repair by {VARIABLE} before the server starts, or serve with --enforce-eager."
        )


def _check_configuration(config: Any) -> None:
    if config.parallel_config.tensor_parallel_size > 1:
        raise BadRequest("chainwright: repairs have not been made for tensor parallelism; serve on one device.")
    if config.speculative_config is not None:
        raise BadRequest("chainwright: a repair cannot follow speculative decoding; serve without a draft model.")
    if config.scheduler_config.async_scheduling:
        raise BadRequest(
            "chainwright: a repair holds tokens back, which asynchronous scheduling does not allow; serve without "
            f"--async-scheduling and without {ASYNC}."
        )
    if config.kv_transfer_config is not None:
        raise BadRequest("chainwright: a repair cannot follow keys and values that are moved between servers.")


def check_beside_repair(params: Any) -> None:
    """Raise BadRequest if a request with a repair asks for what a repair cannot do.

    Args:
        params: Its SamplingParams.
    """
    if params.prompt_logprobs is not None:
        raise BadRequest("chainwright: a repair changes what is generated, not the prompt; leave prompt_logprobs out.")
    if params.ignore_eos:
        raise BadRequest("chainwright: a repair has nothing to decide after the end; leave ignore_eos out.")


def _init(own: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        prepare(self.vllm_config)

    return init


def _process_inputs(own: Callable[..., Any]) -> Callable[..., Any]:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        extra_args, has_repair = getattr(params, "extra_args", None), False
        if extra_args and (KEY in extra_args or RUN in extra_args):
            params = params.clone()  # the caller's own are not touched
            try:
                params.extra_args = checked(extra_args, self.vllm_config)
                spec = asked(params.extra_args)
                has_repair = not isinstance(spec, KnockOut)
                if has_repair:
                    check_beside_repair(params)
                if isinstance(spec, UseStepFlow):
                    params.skip_reading_prefix_cache = True  # its keys and values are kept apart, from the first on
            except BadRequest as error:
                raise VLLMValidationError(str(error)) from error
        request = own(self, request_id, prompt, params, *args, **kwargs)
        if has_repair:
            if request.prompt_embeds is not None:
                raise VLLMValidationError("chainwright: a repair needs the tokens of a prompt, not its embeddings.")
            if request.lora_request is not None:
                warn_unchecked(f"the request has the adapter {request.lora_request.lora_name} on top")
        return request

    return process_inputs


def _create_engine_config(own: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        offered()  # a mistake of the operator is better seen now than by a client
        if self.async_scheduling is None and os.environ.get(ASYNC) != "1":
            self.async_scheduling = False  # a flagged token is held back, which nobody may have scheduled beyond
        return own(self, *args, **kwargs)

    return create_engine_config


def _to_beam_search_params(own: Callable[..., Any]) -> Callable[..., Any]:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        if KEY in (self.vllm_xargs or {}):  # vLLM would drop it on the way
            raise VLLMValidationError("chainwright: edits do not go with beam search; leave use_beam_search out.")
        return own(self, *args, **kwargs)

    return to_beam_search_params


def _let_objects_in(request: Any) -> None:
    """Let the values of `vllm_xargs` be any JSON: vLLM's own type has no objects in it."""
    field = request.model_fields["vllm_xargs"]
    if field.annotation != dict[str, Any] | None:
        field.annotation = dict[str, Any] | None
        request.model_rebuild(force=True)
