"""What findings say in words: the same facts as lines and, in a report, as paragraphs.

`summary_lines` is what the command line prints and the box at the top of a report shows; `paragraphs` is the opening of
a report, in which every share has its count and its 95% interval.
"""

from __future__ import annotations

from chainwright.diagnose.facts import Answers, BestHeads, Facts, Gain, Kinds, Reach, Sureness, Uncertainty
from chainwright.diagnose.heads.roles import HeadCheck, RoleFinding
from chainwright.figures.words import counted, head_name, share_of, title_of

_FAMILY_NAMES = {
    "recall": "a recall error",
    "computing or copying": "an error of computing or copying",
    "fewer or more hops": "a hop too few or too many",
    "other": "an error of another kind",
    "cannot be read": "a response that cannot be read",
}


def summary_lines(facts: Facts, *, searched_heads: bool = False) -> list[str]:
    """Return one line per fact, each of which begins with a word that says what it is about.

    Args:
        facts: What `facts_of` returned.
        searched_heads: Whether heads were looked for, so that there is a line about them even if none was located.
    """
    lines = []
    if facts.reach is not None:
        lines.append(_reach_line(facts.reach))
    if facts.answers is not None:
        lines.append(f"Answers: {_answers_text(facts.answers)}.")
    if facts.sureness is not None:
        lines.append(f"Uncertainty: {_sureness_text(facts.sureness)}")
    if facts.kinds is not None:
        lines += [_kinds_line(facts.kinds), _uncertainty_line(facts.uncertainty)]
    if facts.heads is not None or searched_heads:
        lines += [_heads_line(facts.heads), _held_out_line(facts.heads)]
    return [*lines, *(_gain_line(gain) for gain in facts.gains)]


def _reach_line(reach: Reach) -> str:
    if reach.easy == reach.hard:
        return (
            f"Where: over {counted(len(reach.tasks), 'task')} whole chains are right in {reach.all.share:.0%} of "
            f"problems ({reach.all.hops} hops)."
        )
    return (
        f"Where: over {counted(len(reach.tasks), 'task')} whole chains are right in {reach.easy.share:.0%} of problems "
        f"at the fewest hops asked ({reach.easy.hops}) and in {reach.hard.share:.0%} at the most ({reach.hard.hops})."
    )


def _answers_text(answers: Answers) -> str:
    """Return how many answers are right, and how many are none that could be judged."""
    text = f"{share_of(answers.n_right, answers.n, 'answers')} are right"
    others = [
        f"{n:,} {what}"
        for n, what in ((answers.n_unread, "could not be read"), (answers.n_cut, "were cut before an answer"))
        if n
    ]
    text = f"{text}; {' and '.join(others)}, which is not the same as wrong" if others else text
    return f"{text}; {answers.n_looping:,} ended in endless repetition" if answers.n_looping else text


def _sureness_text(sure: Sureness) -> str:
    if sure.right is None or sure.wrong is None or sure.auc is None:
        return sure.missing
    interval = "" if sure.low is None or sure.high is None else f" (95% {sure.low:.0%} to {sure.high:.0%})"
    apart = sure.low is not None and sure.high is not None and not sure.low <= 0.5 <= sure.high
    verdict = "" if apart else ", which does not differ from chance at this sample size"
    return (
        f"entropy is {sure.wrong:.2f} nats per token in responses with wrong answers vs {sure.right:.2f} in those with "
        f"right ones; of a wrong and a right response the wrong one has the higher entropy in {sure.auc:.0%} of "
        f"pairs{interval}{verdict}."
    )


def _kinds_line(kinds: Kinds) -> str:
    if not kinds.n and kinds.n_unlocated:
        return f"Kind: unknown; {counted(kinds.n_unlocated, 'wrong answer')}, none with a located first error."
    if not kinds.n:
        return "Kind: no trace has an error, so there is nothing to diagnose; ask for more hops."
    keys = "; ".join(f"{title_of(task)} {', '.join(types)}" for task, types in kinds.key_types.items())
    share = kinds.families.get("recall", 0) / kinds.n
    return f"Kind: {share:.0%} of {kinds.n} first errors are recall errors; key types: {keys or 'none'}."


def _uncertainty_line(uncertainty: Uncertainty | None) -> str:
    if uncertainty is None:
        return (
            "Uncertainty: no entropies to compare; they need token scores, errors and correct slots of the same type."
        )
    return (
        f"Uncertainty: entropy is {uncertainty.at_errors:.2f} nats at first errors vs {uncertainty.at_correct:.2f} at "
        "correct slots of the same type (medians per error type, averaged over errors)."
    )


def _heads_line(heads: BestHeads | None) -> str:
    if heads is None:
        return "Heads: no key error type had enough first errors to look for heads."
    if heads.best is None or heads.best.check is None:
        return "Heads: located, but too few contexts were left to check the best ones on."
    role, check = heads.best, heads.best.check
    layer, head = check.head
    return (
        f"Heads: in {title_of(role.task)}, {role.error_type}, silencing layer {layer} head {head} alone puts the "
        f"right token first in {check.corrected:.0%} of {check.n_erroneous} failing contexts that it was not chosen "
        f"on, and keeps it first in {check.kept:.0%} of {check.n_correct} right ones."
    )


def _held_out_line(heads: BestHeads | None) -> str:
    if heads is None or not heads.checks:
        return "Reach: no head was checked on held-out contexts; more problems per cell would leave some."
    over = "the error type" if len(heads.checks) == 1 else f"the {len(heads.checks)} error types"
    return (
        f"Reach: over {over} searched, the best single head of each fixes {heads.n_fixed / heads.n_wrong:.0%} of "
        f"{heads.n_wrong} held-out failing contexts and keeps {heads.n_kept / heads.n_right:.0%} of the right ones; "
        "these are single tokens, not yet answers."
    )


def _gain_line(gain: Gain) -> str:
    return (
        f"Repair: with {gain.name} {gain.n_right / gain.n:.1%} of {gain.n} whole chains are right instead of "
        f"{gain.n_right_before / gain.n:.1%}: {gain.interval}; {gain.n_fixed} fixed, {gain.n_broken} broken."
    )


def paragraphs(facts: Facts, model: str) -> list[str]:
    """Return the same facts as paragraphs of a report, each share with its count and its 95% interval.

    Args:
        facts: What `facts_of` returned.
        model: What the model is called.
    """
    first = [] if facts.reach is None else [_reach_text(facts.reach, model)]
    if facts.answers is not None:
        first.append(f"{_answers_text(facts.answers)}.")
    if facts.sureness is not None:
        text = _sureness_text(facts.sureness)
        first.append(f"{text[:1].upper()}{text[1:]}")
    if facts.kinds is not None:
        first.append(_kinds_text(facts.kinds))
    if facts.uncertainty is not None:
        first.append(_uncertainty_text(facts.uncertainty))
    heads = [] if facts.heads is None else [_heads_text(facts.heads)]
    return [text for text in (" ".join(first), *heads, *(_gain_text(gain) for gain in facts.gains)) if text]


def _reach_text(reach: Reach, model: str) -> str:
    over = title_of(reach.tasks[0]) if len(reach.tasks) == 1 else f"{len(reach.tasks)} tasks"
    whole = (
        f"Asked {counted(reach.all.n, 'problem')} of {over}, {model} got "
        f"{share_of(reach.all.n_right, reach.all.n, 'whole chains')} right"
    )
    if reach.all.n == reach.hard.n:
        return f"{whole}."
    which = "the task" if len(reach.tasks) == 1 else "each task"
    return f"{whole}; at the most hops of {which} it got {share_of(reach.hard.n_right, reach.hard.n, 'chains')} right."


def _kinds_text(kinds: Kinds) -> str:
    if not kinds.n and kinds.n_unlocated:
        return f"{counted(kinds.n_unlocated, 'answer')} went wrong, but no first error could be located."
    if not kinds.n:
        return "No chain went wrong, so there is nothing to diagnose; ask for more hops."
    family, n = next(iter(kinds.families.items()))
    return f"The first error is most often {_FAMILY_NAMES[family]}: {share_of(n, kinds.n, 'wrong chains')}."


def _uncertainty_text(uncertainty: Uncertainty) -> str:
    higher = _share_of_types(uncertainty.n_higher, uncertainty.n_types, "error type")
    text = (
        f"The model was less sure there than at correct slots of the same type for {higher} that can be compared "
        "(by median entropy)"
    )
    if not uncertainty.n_intervals:
        return f"{text}; none of them has enough tokens for an interval."
    apart = _share_of_types(uncertainty.n_apart, uncertainty.n_intervals, "type")
    return f"{text}; for {apart} with enough tokens for 95% intervals of both medians, these do not overlap."


def _share_of_types(n: int, n_all: int, noun: str) -> str:
    """Return "2 of the 3 types", "all 3 types" or "the one type"."""
    if n < n_all:
        return f"{n} of the {counted(n_all, noun)}"
    return f"the one {noun}" if n_all == 1 else f"all {counted(n_all, noun)}"


def _heads_text(heads: BestHeads) -> str:
    where = "the one error type searched" if heads.n_types == 1 else f"each of the {heads.n_types} error types searched"
    which = f"each of the {heads.n_heads:,} attention heads was silenced in turn"
    if heads.measured < 1:
        which = (
            f"the {heads.measured:.0%} of the {heads.n_heads:,} attention heads that an estimate ranks highest were "
            "silenced in turn"
        )
    first = (
        f"To find the cause, {which} at {where}, and for each type the head was chosen that fixed most and broke least."
    )
    if heads.best is None or heads.best.check is None:
        return (
            f"{first} There were too few contexts to check any of them on contexts that it was not chosen on, so "
            "these heads are leads, not results: ask for more problems per cell."
        )
    return f"{first} {_held_out_text(heads)} {_best_text(heads, heads.best, heads.best.check)}"


def _held_out_text(heads: BestHeads) -> str:
    where = "the one type" if len(heads.checks) == 1 else f"the {len(heads.checks)} types"
    return (
        f"On held-out contexts, which {where} had enough of, silencing it put the right token first in "
        f"{share_of(heads.n_fixed, heads.n_wrong, 'failing contexts')} and left it first in "
        f"{share_of(heads.n_kept, heads.n_right, 'right ones')}."
    )


def _best_text(heads: BestHeads, best: RoleFinding, check: HeadCheck) -> str:
    n_fixed = round(check.corrected * check.n_erroneous)
    text = (
        f"It did best in {title_of(best.task)}, {best.error_type}: {head_name(check.head)} fixed "
        f"{share_of(n_fixed, check.n_erroneous, 'contexts')}"
    )
    if len(heads.checks) > 1:
        text += f", an optimistic figure, as it is the best of {len(heads.checks)}"
    caution = "" if check.n_erroneous >= 20 else " With so few contexts take the head as a lead, not as a result."
    return f"{text}.{caution} These are single tokens; no answer was decoded again without the head."


def _gain_text(gain: Gain) -> str:
    unclear = ", not distinguishable from zero at this sample size" if gain.low <= 0 <= gain.high else ""
    return (
        f"The same problems were answered again with {gain.name}: {share_of(gain.n_right, gain.n, 'whole chains')} "
        f"are right, against {gain.n_right_before:,} ({gain.baseline}). It fixed {gain.n_fixed:,} and broke "
        f"{gain.n_broken:,}: {gain.interval}{unclear}."
    )
