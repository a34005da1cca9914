"""The published findings: what each paper says, the figure it gives, and what is measured here to hold against it.

Figures are those of the papers, on their models; a value here is on ours. Gains are differences of shares, so 0.068 is
6.8 points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from chainwright.reproduce.findings.rules import Above, AtLeast, AtMost, Between, Gain, NoRule, Rule

PAPERS: Mapping[str, str] = {
    "tcr": "Test-time correction of reasoning (TCR, arXiv 2601.21214)",
    "steps": "Step-Saliency and StepFlow (arXiv 2604.06695)",
    "flow": "Logit flow and back attention (arXiv 2502.10835)",
    "iteration": "Iteration heads (arXiv 2406.02128)",
}
"""The papers by the keys that findings begin with."""
_UNSTATED = "not stated"


@dataclass(frozen=True)
class Published:
    """One published finding.

    Attributes:
        id: The paper's key, a hyphen, and a name: "tcr-gain".
        statement: What the paper says, in our words.
        published: Its figure, with the model that it is of.
        value: What a record's value is.
        rule: How the verdict follows from the value.
    """

    id: str
    statement: str
    published: str
    value: str
    rule: Rule

    @property
    def paper(self) -> str:
        """Return the key of the paper."""
        return self.id.partition("-")[0]


_TCR = (
    Published(
        "tcr-hops",
        "Chains of a kind that a model gets right at few hops fail at many.",
        "32% to 80% right at the main hop counts (average of 7 tasks; five models)",
        "Share of tasks in which chains right fall by half or more from the smallest to the largest hop count.",
        AtLeast(0.8, 0.4),
    ),
    Published(
        "tcr-key-types",
        "A task's first errors concentrate in a few error types.",
        "at least one type with 30% of the first errors in every task",
        "Share of tasks whose most frequent type has at least 30% of the first errors.",
        AtLeast(1.0, 0.5),
    ),
    Published(
        "tcr-recall",
        "In Parity-NL the usual first error is a recall: the next name of the list.",
        "78.6% name recall (Qwen2.5-7B, 50 hops)",
        "Share of Parity-NL's first errors that are of the type name recall.",
        AtLeast(0.5, 0.3),
    ),
    Published(
        "tcr-entropy",
        "The model is unsure where it first errs: entropy above 0.3 nats shows the place.",
        "tau = 0.3 nats, 0.4 for a reasoning model",
        "Share of first errors at which the entropy is above 0.3 nats.",
        AtLeast(0.7, 0.5),
    ),
    Published(
        "tcr-disjoint",
        "Heads that support right tokens and heads that support wrong ones are different heads.",
        "almost disjoint",
        "Share of the correct-processing heads that are erroneous-processing heads too.",
        AtMost(0.2, 0.5),
    ),
    Published(
        "tcr-writing-shared",
        "Right and wrong tokens are written by partly the same answer-writing heads.",
        "about 60% shared",
        "Share of the ten best answer-writing heads of right tokens that are among those of wrong tokens.",
        Between((0.4, 0.8), (0.2, 1.0)),
    ),
    Published(
        "tcr-rectification",
        "Silencing one head that supports the wrong token raises the right one.",
        "a rise at the located heads",
        "Probability that the right token gains at first errors that the head was not chosen on.",
        Above(),
    ),
    Published(
        "tcr-relocated",
        "After that knockout the right token depends on the heads that right tokens usually depend on.",
        "93.3% of the top 15 heads agree",
        "Share of the 15 best correct-processing heads that agree, mean over error types.",
        AtLeast(0.8, 0.5),
    ),
    Published(
        "tcr-rectified-entropy",
        "Predictions after a knockout that corrects them lie between right and wrong ones in entropy.",
        "between",
        "Share of error types in which the mean entropy after the knockout lies between both.",
        AtLeast(0.8, 0.5),
    ),
    Published(
        "tcr-cover",
        "A handful of heads covers all key error types.",
        "8 to 10 heads for five tasks",
        "Heads that the greedy cover takes.",
        AtMost(10, 20),
    ),
    Published(
        "tcr-hit",
        "A selector finds a head that corrects the error, on the tasks that it was trained on.",
        "Hit@1 75% to 87% (random head: 19% to 42%)",
        "Hit@1 at first errors of the fitted tasks.",
        AtLeast(0.75, 0.5),
    ),
    Published(
        "tcr-hit-other-tasks",
        "It finds one on other tasks too.",
        "Hit@1 35% to 82% on ObjC and NumS",
        "Hit@1 at first errors of ObjC and NumS, less that of a random head.",
        AtLeast(0.15, 0.05),
    ),
    Published(
        "tcr-gain",
        "The published vote of three heads at tokens with high entropy gets more right.",
        "+6.8 points (Qwen2.5-7B, average of 7 tasks; other models +1.6 to +6.4)",
        "Gain in chains right of the vote with entropy flags.",
        Gain(0.068),
    ),
    Published(
        "tcr-gold",
        "Where the place of the error is known, voting gains far more.",
        "+19.6 points (Qwen2.5-7B; other models +9.1 to +11.8)",
        "Gain in chains right of the vote with gold flags.",
        Gain(0.118),
    ),
    Published(
        "tcr-gap",
        "Entropy flags leave most of that gain unused.",
        "12.8 points between TCR and TCR with gold flags (Qwen2.5-7B)",
        "Chains right with gold flags less those with entropy flags.",
        AtLeast(0.05, 0.01),
    ),
    Published(
        "tcr-dola",
        "TCR gains more than contrasting layers does (DoLa).",
        "+6.8 against +0.9 points (Qwen2.5-7B)",
        "Chains right with TCR's vote and entropy flags less those with DoLa.",
        AtLeast(0.02, 0.005),
    ),
    Published(
        "tcr-other-tasks",
        "It gains on tasks in which no head was located.",
        "ObjC and NumS are part of the average gain",
        "Gain in chains right on ObjC and NumS of the repair that was fitted on the other five.",
        Above(),
    ),
    Published(
        "tcr-word-problems",
        "It gains on word problems without a new selector.",
        "+1.7 and +1.4 points on Big-GSM",
        "Gain in answers right on word problems.",
        Gain(0.014),
    ),
    Published(
        "tcr-shorter",
        "Responses of a reasoning model get shorter.",
        "13.6% shorter (R1-Distill-7B)",
        "Relative change of the number of response tokens.",
        AtMost(-0.068, -0.01),
    ),
)

_STEPS = (
    Published(
        "steps-lock-in",
        "Wrong traces show shallow lock-in: in low layers a step depends on itself and the one before.",
        "in wrong traces (no figure)",
        "Effect size (Mann-Whitney, wrong over right) of lock-in in the lowest quarter of the layers, matched pairs.",
        Above(),
    ),
    Published(
        "steps-decay",
        "Wrong traces show deep decay: in high layers the summary depends less on the thinking.",
        "in wrong traces (no figure)",
        "Effect size (right over wrong) of the summary's share on the thinking in the highest quarter of the layers.",
        Above(),
    ),
    Published(
        "steps-question",
        "Where a chain goes wrong, low layers attend too little to the question: what the bridge assumes.",
        "assumed",
        "Attention on the question in the lowest quarter of the layers, right less wrong, matched pairs.",
        Above(),
    ),
    Published(
        "steps-causes",
        "A step map shows what an answer depends on.",
        "assumed",
        "Rank correlation of saliency with the answer's loss of log-probability when the pair of steps is cut; "
        "median over bands of layers.",
        AtLeast(0.3, 0.1),
    ),
    Published(
        "steps-gain",
        "StepFlow with a floor of 0.15 in the lowest and a momentum of 0.06 in the highest quarter gains.",
        "+1.0 to +9.5 points (R1-Distill-7B, five benchmarks), median +8.5",
        "Gain in chains right of the published settings.",
        Gain(0.085),
    ),
    Published(
        "steps-bridge",
        "The bridge alone gains about half of that.",
        "about half",
        "Gain in chains right of the bridge with the published settings.",
        Gain(0.042),
    ),
    Published(
        "steps-momentum",
        "The momentum alone gains about half of that.",
        "about half",
        "Gain in chains right of the momentum with the published settings.",
        Gain(0.042),
    ),
    Published(
        "steps-tuned",
        "Tuned per model on a few other problems, StepFlow gains.",
        "+1.0 to +9.5 points (R1-Distill-7B, five benchmarks), median +8.5",
        "Gain in chains right of settings that were tuned on other problems.",
        Gain(0.085),
    ),
    Published(
        "steps-chosen",
        "Its layers can be chosen without a search.",
        "left open",
        "Gain in chains right of the layers that one diagnosis chose on other problems.",
        Above(),
    ),
    Published(
        "steps-heads",
        "A floor per head instead of one per layer.",
        "not in the paper",
        "Gain in chains right of the heads and floors that one diagnosis chose on other problems.",
        NoRule(),
    ),
    Published(
        "steps-voting",
        "Self-consistency needs eight samples for the same gain.",
        "8 samples",
        "Answers right of tuned StepFlow less those of self-consistency with four samples.",
        Above(),
    ),
    Published(
        "steps-with-voting",
        "StepFlow with two samples beats self-consistency with four.",
        "beats it",
        "Answers right of tuned StepFlow with two samples less those of self-consistency with four.",
        Above(),
    ),
    Published(
        "steps-cost",
        "StepFlow makes a token about a third dearer.",
        "1.35 times",
        "Processor time per token with StepFlow, relative to the model alone.",
        AtMost(1.35, 1.6),
    ),
)

_FLOW = (
    Published(
        "flow-order",
        "A fact is read off its entity in low layers (stages A and B) and looked up at the relation above (C and D).",
        "A and B in layers 7 to 20, C and D in 20 to 31 of 32 (Llama2-7B)",
        "Share of known facts in which the centres of A and B lie below those of C and D.",
        AtLeast(0.9, 0.6),
    ),
    Published(
        "flow-depth",
        "The relation's stages lie in the upper third.",
        "layers 20 to 31 of 32 (Llama2-7B)",
        "Centre of C and D as a share of the depth.",
        AtLeast(0.6, 0.5),
    ),
    Published(
        "flow-entity-depth",
        "The entity's stages lie below it.",
        "layers 7 to 20 of 32 (Llama2-7B)",
        "Centre of A and B as a share of the depth.",
        Between((0.2, 0.63), (0.1, 0.7)),
    ),
    Published(
        "flow-value-deep",
        "The neurons that write an answer lie in deep layers.",
        "in deep layers (no figure)",
        "Centre of the 100 best value neurons of each kind as a share of the depth, weighted by importance.",
        AtLeast(0.6, 0.5),
    ),
    Published(
        "flow-entity",
        "The entity's own position takes part, through several layers.",
        "layers 7 to 20 of 32 (Llama2-7B)",
        "Credit of a token of the entity relative to an unmarked one, median over known facts.",
        AtLeast(3.0, 1.5),
    ),
    Published(
        "flow-two-hop-right",
        "Two known facts are composed about half of the time.",
        "52.3% of 568 checked cases",
        "Share of two-hop questions answered right among those whose facts are known.",
        Between((0.35, 0.7), (0.2, 0.85)),
    ),
    Published(
        "flow-two-hop-wrong",
        "Where composing fails, the answer is nearly always that of the first hop.",
        "42.4% of cases, 89% of the wrong answers",
        "Share of the wrong answers that are the first hop's.",
        AtLeast(0.6, 0.3),
    ),
    Published(
        "flow-conflict",
        "Wrong answers come from deep layers at the first relation.",
        "stronger there in wrong cases (no figure)",
        "Share of credit of the first relation's deep layers in wrong less that in right answers.",
        Above(),
    ),
    Published(
        "flow-back-two-hop",
        "Back attention on a frozen model composes facts.",
        "46.9 to 77.0, average of five sets (Llama3.1-8B)",
        "Gain in answers right on held-out two-hop questions.",
        Gain(0.301),
    ),
    Published(
        "flow-back-arithmetic",
        "It computes composite arithmetic at once.",
        "46.9 to 77.0, average of five sets (Llama3.1-8B)",
        "Gain in answers right on held-out one-digit composite arithmetic.",
        Gain(0.301),
    ),
    Published(
        "flow-back-word-problems",
        "It answers word problems at once.",
        "46.9 to 77.0, average of five sets (Llama3.1-8B)",
        "Gain in answers right on MultiArith and SVAMP test problems, answered without a chain.",
        Gain(0.301),
    ),
    Published(
        "flow-back-control",
        "The gain comes from reading deeper layers of other positions.",
        _UNSTATED,
        "Answers right with back attention less those with LoRA of equal size, held-out two-hop questions.",
        Above(),
    ),
    Published(
        "flow-back-source",
        "A source near a fifth of the depth is best.",
        "layer 6 of 32; 0 to 5 unstable, later ones weaker (Llama3.1-8B)",
        "Best source layer as a share of the depth.",
        Between((0.1, 0.35), (0.03, 0.5)),
    ),
    Published(
        "flow-back-scratch",
        "From scratch, one layer with back attention learns two-digit sums that one layer does not.",
        "67.1% to 93.5%",
        "Accuracy with back attention less that of one layer, mean of the seeds.",
        AtLeast(0.13, 0.03),
    ),
    Published(
        "flow-back-two-layers",
        "It is as good as two layers, with 57% of their parameters.",
        "93.5% against 92.5%",
        "Accuracy with back attention less that of two layers, mean of the seeds.",
        AtLeast(-0.02, -0.1),
    ),
    Published(
        "flow-back-cost",
        "A decoded token costs 1 + (L - s) / L of one of the model alone.",
        "1.8 (s = 6, L = 32)",
        "Measured cost of a token relative to that formula.",
        AtMost(1.15, 1.4),
    ),
)

_ITERATION = (
    Published(
        "iteration-together",
        "The heads appear together with accuracy.",
        "together",
        "Share of trainings that reach 90% in which half of the diagonal's rise is within 150 steps of the accuracy's.",
        AtLeast(0.65, 0.4),
    ),
    Published(
        "iteration-copy-first",
        "Copying is learned before parity.",
        "before",
        "Share of pairs of trainings in which copying reaches 90% first.",
        AtLeast(1.0, 0.6),
    ),
    Published(
        "iteration-transfer",
        "After the polynomial task parity is learned much faster than from scratch.",
        "much faster",
        "Share of seeds in which parity after the polynomial task is ahead after the same total number of steps.",
        AtLeast(1.0, 0.6),
    ),
    Published(
        "iteration-no-chain",
        "Without a chain of thought accuracy collapses with length.",
        "collapses",
        "Accuracy at the longest length with a chain less that without one, smallest of the tasks.",
        AtLeast(0.5, 0.2),
    ),
    Published(
        "iteration-width",
        "Narrower models form the heads on polynomials too.",
        "they do",
        "Widest model below the paper's 128 that has both heads and 90% exact, as a share of that width.",
        AtMost(0.5, 0.99),
    ),
    Published(
        "iteration-layers",
        "The circuit takes two layers.",
        "two",
        "Exact sequences with two layers less those with one.",
        AtLeast(0.5, 0.1),
    ),
    Published(
        "iteration-heads",
        "A head attends from where step t is written to the t-th input.",
        "trained on iterative tasks: nearly all of its attention",
        "Share of tasks in which the best `recall` head puts 0.3 or more of its attention there, above every shuffle.",
        AtLeast(0.8, 0.4),
    ),
    Published(
        "iteration-causal",
        "The written steps depend on that head.",
        "assumed of the circuit",
        "Tokens lost when the best `recall` head of a task is silenced less those lost without a random head, "
        "mean over tasks.",
        AtLeast(0.2, 0.02),
    ),
    Published(
        "iteration-cp-heads",
        "Iteration heads are the heads without which right tokens lose most.",
        "not in the paper",
        "Share of the best `recall` heads that are correct-processing heads, less the share expected by chance.",
        NoRule(),
    ),
)

FINDINGS: Mapping[str, Published] = {f.id: f for f in chain(_TCR, _STEPS, _FLOW, _ITERATION)}
"""Every finding by its id, in the order of the table."""
