"""The settings of TCR: which problems it is fitted on, how it is fitted, and how a fitted one decodes.

Nothing here imports PyTorch, so that the help of commands comes quickly.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from chainwright._config import Config, MustBe, Positions

Decision = Literal["vote", "verify"]
Cover = Literal["samples", "types"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Nats = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class TCRConfig(Config):
    """How a fitted TCR decodes."""

    n_votes: Count = Field(default=3, description="Heads that are silenced at a flagged token, each alone, for a vote.")
    positions: Positions = Field(
        default="all", description="Silence heads at all positions of the row's past and present, or only at the last."
    )
    scale: float = Field(default=0.0, description="Factor on the outputs of a silenced head: 0 silences, 0.5 halves.")
    max_bytes: Count = Field(
        default=2**30,
        description="Memory bound of the cached runs without single heads, beside the pass that is running.",
    )
    decision: Decision = Field(
        default="vote",
        description="'vote': heads ranked by the selector vote, as in the paper. 'verify': all candidate heads are "
        "silenced, each alone, and the verifier decides between the model's first and second choice.",
    )


class FitProblems(Config):
    """The problems that a TCR is fitted and tuned on; figures are taken from others."""

    task: str = Field(default="parity,mdm,llc,clf,moas", description="Tasks to fit on, separated by commas.")
    n: Count = Field(default=80, description="Problems per task and hop count.")
    seed: int = Field(default=100, description="Seed of the problems to fit and tune on, none of the test seeds.")


class CandidateConfig(Config):
    """How candidate heads are found."""

    n_contexts: Count = Field(
        default=16,
        description="Wrong, and as many right, contexts of each key error type on which heads are located.",
    )
    min_errors: Count = Field(default=5, description="Types with fewer known first errors are skipped.")
    max_heads: Count = Field(default=8, description="Maximum number of candidate heads.")
    cover: Cover = Field(
        default="samples",
        description="Choose heads that cover the errors they fix ('samples'), or the key error types they were located "
        "in ('types', as in the paper).",
    )
    positions: Positions = Field(
        default="all", description="Silence heads at all positions, or only at the last; the repair does the same."
    )
    sweep_bytes: Count | None = Field(
        default=None,
        description="Bytes that sweeps over heads, and blocks of step maps, may take (default: by device; `chainwright "
        "plan` says what fits).",
    )
    n_lessons: Count = Field(
        default=150, description="Lessons on which fixed errors and unharmed right tokens are counted."
    )
    right_share: Share = Field(
        default=0.5,
        description="Share of the right tokens with an entropy above 0.01 nats on which `kept` is counted.",
    )
    seed: int = Field(default=0, description="Seed of the choice of right tokens.")


class TrainConfig(Config):
    """How the detector, the verifier and the light selector are trained."""

    n_hidden: int = Field(default=96, ge=0, description="Units of the hidden layer; 0 makes the network linear.")
    n_epochs: Count = Field(
        default=40,
        description="Maximum passes over the samples; the epoch that is best on the held-out samples is used.",
    )
    batch_size: Count = Field(default=128, description="Samples per step.")
    lr: Rate = Field(default=2e-3, description="Learning rate of AdamW, which falls along a cosine.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay of AdamW.")
    dropout: Dropout = Field(default=0.2, description="Share of inputs and hidden units that each training step drops.")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the samples that only choose the epoch; with none, the last epoch is used."
    )
    seed: int = Field(default=0, description="Seed of the weights, the held-out samples and the batches.")


class ClassifierConfig(Config):
    """How a classifier as selector is trained; the defaults are the paper's."""

    rank: Count = Field(default=16, description="Rank of the LoRA adapters.")
    alpha: Count = Field(default=32, description="Alpha of the LoRA adapters.")
    dropout: Dropout = Field(default=0.05, description="Dropout of the LoRA adapters.")
    batch_size: Count = Field(default=16, description="Contexts per step.")
    lr: Rate = Field(default=1e-4, description="Learning rate of a classifier as selector; the default is the paper's.")
    n_epochs: Count = Field(
        default=3, description="Passes of a classifier over its training samples; the default is the paper's."
    )
    max_norm: Rate = Field(default=1.0, description="Maximum norm of the gradient.")
    seed: int = Field(default=0, description="Seed of the weights and the batches.")


class FitConfig(Config):
    """How TCR is fitted."""

    candidates: CandidateConfig = Field(
        default=CandidateConfig(),
        description="How the candidate heads are found; its `positions` are those that the repair decodes with.",
    )
    selector: Annotated[str, Field(min_length=1), MustBe("'light', or a bundled name, a folder or a Hub id")] = Field(
        default="light",
        description="'light', or the base model of a classifier: a bundled name, a folder, or a Hub id.",
    )
    detector: Literal["trained", "lens", "entropy"] = Field(
        default="trained",
        description="'trained'; 'lens': trained, and also reads the two likeliest tokens through the logit lens; "
        "'entropy': flag tokens above an entropy threshold.",
    )
    tau: Nats | None = Field(
        default=None, description="Entropy threshold of the entropy detector, in nats (default: tuned)."
    )
    decision: Decision = Field(
        default="verify",
        description="'verify': a network compares the runs without single heads; 'vote': they vote, as in the paper.",
    )
    n_votes: Count | None = Field(
        default=None, description="Heads that vote (default: the paper's 3, or 1 if that is clearly better)."
    )
    slack: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01,
        description="Share of the tune chains that fewer flags may cost: of all thresholds that come as near to the "
        "best, the highest is taken.",
    )
    scale: float = Field(default=0.0, description=TCRConfig.model_fields["scale"].description)
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="Layers that selector and detector read (default: a quarter, a half and three quarters of the way, "
        "and the last).",
    )
    lens_layers: tuple[int, ...] | None = Field(
        default=None,
        description="Layers at which detector and verifier read the two likeliest tokens through the logit lens "
        "(default: none, or with detector 'lens' all, at most eight, spread evenly).",
    )
    doubt_above: Nats = Field(
        default=0.1, description="Tokens with less entropy (nats) teach the selector nothing, unless they are wrong."
    )
    certain_below: Nats = Field(
        default=0.01,
        description="Right tokens with less entropy (nats) teach the detector little: `certain_share` of them is used.",
    )
    certain_share: Share = Field(
        default=0.1, description="Share of the right tokens below `certain_below` that the detector is trained on."
    )
    tune_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="Share of the problems that are used for tuning alone."
    )
    training: TrainConfig = Field(
        default=TrainConfig(), description="How the detector, the verifier and the light selector are trained."
    )
    classifier: ClassifierConfig = Field(
        default=ClassifierConfig(), description="How a classifier as selector is trained."
    )
    max_bytes: Count = Field(default=TCRConfig().max_bytes, description="Memory bound of the fitted repair.")
