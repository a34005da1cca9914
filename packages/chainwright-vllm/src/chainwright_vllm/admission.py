"""Where requests enter: what they ask for is checked against the model, and refused in one sentence if it cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from chainwright_vllm.patching import wrap
from chainwright_vllm.spec import KEY, BadRequest, ModelShape, asked

_PROTOCOLS = (
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.responses.protocol", "ResponsesRequest"),
)


def install() -> None:
    """Check requests, and let the `vllm_xargs` of requests over HTTP hold objects."""
    from vllm.v1.engine.input_processor import InputProcessor

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
    spec = asked(extra_args)
    if spec is None:
        return extra_args
    model, parallel = config.model_config, config.parallel_config
    spec.check(ModelShape(model.get_total_num_hidden_layers(), model.model_arch_config.total_num_attention_heads))
    if parallel.pipeline_parallel_size > 1:
        raise BadRequest("chainwright: edits need all layers in one place; serve without pipeline parallelism.")
    if getattr(parallel, "enable_dbo", False):
        raise BadRequest("chainwright: edits cannot follow a batch that is split in two; serve without --enable-dbo.")
    return {**extra_args, KEY: spec.record()}


def _process_inputs(own: Callable[..., Any]) -> Callable[..., Any]:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        extra_args = getattr(params, "extra_args", None)
        if extra_args and KEY in extra_args:
            params = params.clone()  # the caller's own are not touched
            try:
                params.extra_args = checked(extra_args, self.vllm_config)
            except BadRequest as error:
                raise VLLMValidationError(str(error)) from error
        return own(self, request_id, prompt, params, *args, **kwargs)

    return process_inputs


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
