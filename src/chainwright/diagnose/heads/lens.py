"""The logit lens, and how much each head writes directly towards an answer, at the last position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import Capture, capture, check_ids
from chainwright.models.load import provenance
from chainwright.models.residual import NormMode, head_writes, lens_log_probs

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@register("finding", "LogitLens")
@dataclass(frozen=True, kw_only=True)
class LogitLens(Finding):
    """Log-probability of a token at each depth of the residual stream, at the last position.

    Attributes:
        logprob: `[N, 2 L + 1]`, nats: before layer 0, then after each layer's attention and after its MLP.
        points: The name of each column ("embedding", "0 mid", "0 post", ...).
    """

    logprob: Tensor
    points: list[str]

    def summary(self) -> str:
        """Return the step at which the token's mean log-probability rises most, in a sentence."""
        step = self.logprob.mean(0).diff()
        best = int(step.argmax())
        where = f"from {self.points[best]} to {self.points[best + 1]}"
        return f"The token rises most {where}: {float(step[best]):+.2f} nats."

    def to_frame(self) -> pa.Table:
        """Return one row for each context and point."""
        n_rows, n_points = self.logprob.shape
        return pa.table(
            {
                "row": [i for i in range(n_rows) for _ in range(n_points)],
                "point": self.points * n_rows,
                "logprob": self.logprob.flatten().tolist(),
            }
        )

    def plot(self) -> Figure:
        """Return the log-probability against depth: a thin line per context and a thick one for their mean."""
        from chainwright.figures import lens_by_depth

        return lens_by_depth(self.logprob, self.points)


def check_token_ids(parts: Anatomy, token_ids: Tensor, n_rows: int) -> Tensor:
    """Return token ids on the model's device; BadInput unless there is one valid id per row."""
    if n_rows == 0 or token_ids.shape != (n_rows,) or token_ids.is_floating_point():
        raise BadInput(
            f"token_ids must hold one id for each of {n_rows} rows (at least one row); got shape "
            f"{list(token_ids.shape)} of {token_ids.dtype}."
        )
    return in_vocabulary(parts, "token_ids", token_ids)


def in_vocabulary(parts: Anatomy, name: str, ids: Tensor) -> Tensor:
    """Return ids on the model's device as int64; BadInput if some are outside the vocabulary."""
    outside = (ids < 0) | (ids >= parts.d_vocab)
    if bool(outside.any()):
        raise BadInput(f"{name} must be between 0 and {parts.d_vocab - 1}; got {int(ids[outside][0])}.")
    return ids.to(parts.device, torch.long)


def _read(
    parts: Anatomy, input_ids: Tensor, token_ids: Tensor, attention_mask: Tensor | None, norm: NormMode
) -> tuple[Tensor, Capture]:
    if norm not in get_args(NormMode):
        raise BadInput(f"norm must be 'final' or 'frozen'; got {norm!r}.")
    check_ids(input_ids, attention_mask)
    token_ids = check_token_ids(parts, token_ids, len(input_ids))
    input_ids = in_vocabulary(parts, "input_ids", input_ids)
    mask = None if attention_mask is None else attention_mask.to(parts.device)
    return token_ids, capture(parts.model, input_ids, attention_mask=mask, residual=True, positions="last")


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    input_ids: Tensor,
    token_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    norm: NormMode = "final",
) -> LogitLens:
    """Return a token's log-probability if the model ended at each depth of the residual stream.

    Args:
        model: A Transformers decoder.
        input_ids: Contexts `[N, T]`, left-padded.
        token_ids: The token to follow, one per context, `[N]`.
        attention_mask: `[N, T]`, None if no row is padded.
        norm: "final" recomputes the final norm's scale at each depth, "frozen" keeps that of the last layer's
            output.

    Raises:
        BadInput: Shapes do not fit, an id is outside the vocabulary, or the norm is unknown.

    Source: the logit lens, with the model's own final norm and unembedding.
    """
    parts = anatomy(model)
    token_ids, read = _read(parts, input_ids, token_ids, attention_mask, norm)
    assert read.resid_pre is not None and read.resid_mid is not None and read.resid_post is not None
    stream = [read.resid_pre[0]]
    for mid, post in zip(read.resid_mid, read.resid_post, strict=True):
        stream += [mid, post]
    last = read.resid_post[-1][:, -1]
    vectors = torch.stack([resid[:, -1].to(last) for resid in stream], dim=1)  # (row, point, model)
    logprob = _lens_each(parts, vectors, token_ids, last, norm)
    points = ["embedding", *(f"{i} {where}" for i in range(parts.n_layers) for where in ("mid", "post"))]
    return LogitLens(
        logprob=logprob.cpu(),
        points=points,
        config={"norm": norm},
        provenance=provenance(parts.model),
    )


@torch.no_grad()
def answer_writing_scores(
    model: nn.Module,
    input_ids: Tensor,
    token_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    norm: NormMode = "final",
) -> Tensor:
    """Return the share of a token's lens probability that each head writes at the last position, `[N, L, H]`.

    The score of head h in layer l is `(p - p without h) / p`, where p is the lens probability of the token
    after the layer's attention, `lens(resid_mid)`, and `p without h` is that of `resid_mid` minus what the
    head writes. 1 means that nothing of it is left without this head; a negative score counts against the token.
    The score is direct: what the head does through later layers is not included (see `knockout_effects`).

    Args:
        model: A Transformers decoder.
        input_ids: Contexts `[N, T]`, left-padded.
        token_ids: The token to score, usually the predicted one, `[N]`.
        attention_mask: `[N, T]`, None if no row is padded.
        norm: As in `logit_lens`.

    Raises:
        BadInput: Shapes do not fit, an id is outside the vocabulary, or the norm is unknown.

    Source: TCR (arXiv 2601.21214), section 3. Departure: for heads whose output passes through a norm before it
    is added (Gemma), the norm's scale is held fixed.
    """
    parts = anatomy(model)
    token_ids, read = _read(parts, input_ids, token_ids, attention_mask, norm)
    return writing_scores(parts, read, token_ids, norm)


def writing_scores(parts: Anatomy, read: Capture, token_ids: Tensor, norm: NormMode = "final") -> Tensor:
    """Return the scores of `answer_writing_scores` from what was read of a pass, the residual stream included."""
    assert read.resid_mid is not None and read.resid_post is not None
    last = read.resid_post[-1][:, -1]
    mids = torch.stack([mid[:, -1].to(last) for mid in read.resid_mid], dim=1)  # (row, layer, model)
    each = [head_writes(layer, z[:, -1]).to(last) for layer, z in zip(parts.layers, read.z, strict=True)]
    writes = torch.stack(each, dim=1)  # (row, layer, head, model)
    without = (mids[:, :, None] - writes).flatten(1, 2)  # (row, head of any layer, model)
    # together, since the unembedding is large and would be read again for every layer
    both = _lens_each(parts, torch.cat([mids, without], dim=1), token_ids, last, norm)
    with_all, without_one = both[:, : parts.n_layers, None], both[:, parts.n_layers :].view(*writes.shape[:3])
    return (1 - (without_one - with_all).exp()).cpu()


def _lens_each(parts: Anatomy, vectors: Tensor, token_ids: Tensor, last: Tensor, norm: NormMode) -> Tensor:
    """Return the log-probability of each row's token at several vectors of that row, `[N, P]`.

    Args:
        parts: Anatomy of the model.
        vectors: Residual vectors `[N, P, D]`.
        token_ids: `[N]`.
        last: The last layer's output of each row `[N, D]`, for the frozen norm.
        norm: As in `logit_lens`.
    """
    n_each = vectors.shape[1]
    found = lens_log_probs(
        parts,
        vectors.flatten(0, 1),
        token_ids.repeat_interleave(n_each),
        norm=norm,
        reference=last.repeat_interleave(n_each, dim=0),
    )
    return found.view(len(vectors), n_each)
