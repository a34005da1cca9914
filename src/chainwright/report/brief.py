"""The first screen of a report: the questions that anybody asks, answered in plain words by whatever was measured.

What was asked, how many were right, where it breaks, what helps at what cost, and how sure that is. A question that
nothing in the report answers is left out, and words that the rest of the page needs (entropy, slots) are not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chainwright._stats import wilson
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.facts import Facts, Reach, facts_of
from chainwright.diagnose.flow.attribution import LogitFlow
from chainwright.diagnose.flow.facts import FactAnswers
from chainwright.diagnose.flow.stages import FlowStages
from chainwright.diagnose.pivots.completers import in_words
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.evaluation.accuracy import UNKNOWN_TASK, Accuracy
from chainwright.evaluation.comparison import Comparison, n_read_of
from chainwright.figures.words import between, counted, listed, percent, span_of, title_of
from chainwright.report.section import Material

ASKED, RIGHT, BREAKS, HELPS, SURE = (
    "What was asked",
    "How many were right",
    "Where it breaks",
    "What helps, at what cost",
    "How sure this is",
)
FOUND = "What was found"
_FEW = 30  # problems below which a share is hardly more than a hint
_MOST_WAYS = 3
_MISTAKES = {
    "recall": "something from earlier on is remembered wrongly",
    "computing or copying": "a step is computed or copied wrongly",
    "fewer or more hops": "there is a step too few or too many",
    "other": "something else goes wrong",
    "cannot be read": "the response cannot be followed",
}
_COSTS = {
    "flagged": "it looked again at {} of the tokens",
    "extra tokens": "for each token written it read {} more",
    "decodings": "each answer took {} decodings",
}


class Line(NamedTuple):
    """One answer: the question, the answer in a sentence, and what else belongs to it."""

    question: str
    lead: str
    more: str = ""


def brief(material: Material) -> list[Line]:
    """Return the lines of the first screen; at least one, whatever the findings are."""
    facts = facts_of(material.findings)
    lines = [_asked(material, facts)]
    for question, sentences in (
        (RIGHT, _right(material, facts)),
        (BREAKS, _breaks(material, facts)),
        (FOUND, [] if _is_judged(material) else _found(material)),
        (HELPS, _helps(material, facts)),
        (SURE, _sure(material, facts)),
    ):
        said = [text for text in sentences if text]
        if said:
            lines.append(Line(question, said[0], " ".join(said[1:])))
    return lines


def _accuracy(material: Material) -> Accuracy | None:
    return next((each for each in material.of(Accuracy) if each.rows), None)


def _is_judged(material: Material) -> bool:
    """Return whether something says how many answers are right."""
    return _accuracy(material) is not None or any(material.of(kind) for kind in (Comparison, Pivots, FactAnswers))


def _asked(material: Material, facts: Facts) -> Line:
    accuracy, comparisons = _accuracy(material), material.of(Comparison)
    written_by = None if material.origin is None else material.origin.written_by
    if accuracy is not None:
        more = [f"The answers were there already, written by {_writers(written_by)}."] if written_by is not None else []
        if facts.gains or comparisons:
            more.append(f"They were answered again {_ways(comparisons)}.")
        return Line(ASKED, _problems(accuracy, material, is_read=written_by is not None), " ".join(more))
    if comparisons:
        first = comparisons[0]
        n = first.overall(first.baseline)["n"]
        ways = f"{_way(first.baseline)} being the one that the others are compared with"
        if len(first.names) <= 6:
            ways = listed([_way(name) for name in first.names])
        how = f"in {counted(len(first.names), 'way')}{': ' if len(first.names) <= 6 else ', '}{ways}"
        return Line(ASKED, f"The same {counted(n, 'problem')}{_steps(first.cells)} {_was(n)} answered {how}.")
    if material.of(Pivots):
        n = sum(len(each.rows) for each in material.of(Pivots))
        why = "to see from where on it no longer ends right"
        return Line(ASKED, f"{counted(n, 'response')} {_was(n)} taken apart, {why}.", _left_out(material))
    if answers := material.of(FactAnswers):
        n = len(answers[0].answers)
        return Line(ASKED, f"{counted(n, 'question')} about facts of the real world {_was(n)} put to {material.model}.")
    if any(isinstance(each, LogitFlow | FlowStages) for each in material.findings):
        return Line(ASKED, f"How {material.model} comes to its answers was followed through its layers.")
    if material.traces:
        n = len(material.traces)
        return Line(ASKED, f"{counted(n, 'response')} of {material.model} {_was(n)} examined.")
    return Line(ASKED, f"What happens inside {material.model} was measured.")


def _problems(accuracy: Accuracy, material: Material, *, is_read: bool) -> str:
    """Return how many problems of what kinds were put to the model, or read by it."""
    rows = accuracy.rows
    n = sum(int(row["n"]) for row in rows)
    names = [title_of(task) for task in dict.fromkeys(row["task"] for row in rows) if task != UNKNOWN_TASK]
    kinds = "" if not names else f" of {listed(names)}" if len(names) <= 4 else f" of {len(names)} kinds"
    what = counted(n, "answer" if is_read or not any(row["hops"] for row in rows) else "problem")
    distinct = {trace.info.get("problem", i) for i, trace in enumerate(material.traces)}
    if material.traces and len(distinct) < n and not any(row["hops"] for row in rows):
        what = f"{counted(len(distinct), 'problem')} with {what}"
    verb = "read by" if is_read else "put to" if what.endswith(("problem", "problems")) else "got from"
    return f"{what}{kinds}{_steps(rows)} {_was(n)} {verb} {material.model}."


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    hops = [int(row["hops"]) for row in rows if row["hops"]]
    return f", which take {span_of(hops)} steps of reasoning each," if hops else ""


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


def _writers(names: Sequence[str] | None) -> str:
    return listed(list(names or [])) or "a model that the files do not name"


def _ways(comparisons: Sequence[Comparison]) -> str:
    names = [name for each in comparisons for name in each.names if name != each.baseline]
    return f"with {listed(names)}" if len(names) <= _MOST_WAYS else f"in {len(names)} other ways"


def _left_out(material: Material) -> str:
    n = sum(count for each in material.of(Pivots) for count in each.selection.values())
    return f"{counted(n, 'problem')} had no response worth looking into." if n else ""


def _right(material: Material, facts: Facts) -> Iterator[str]:
    """Yield how many answers are right, of whatever judged them."""
    if facts.reach is not None:
        whole = facts.reach.all
        yield f"{whole.n_right:,} of {whole.n:,} ({percent(whole.share)}) have no mistake in any step."
        yield from _final_answers(material)
    if facts.answers is not None:
        given = facts.answers
        yield f"{given.n_right:,} of {given.n:,} answers ({percent(given.n_right / given.n)}) are right."
        for n, what in (
            (given.n_unread, "could not be understood by the checker"),
            (given.n_cut, "were cut off before an answer"),
            (given.n_looping, "ended in endless repetition"),
        ):
            if n:
                yield f"{n:,} {what if n > 1 else what.replace('were', 'was', 1)}."
    if facts.reach is None and facts.answers is None:
        for found in material.of(Comparison)[:1]:
            yield _ways_right(found)
        yield from (_ends(each) for each in material.of(Pivots))
        yield from (_known_facts(each) for each in material.of(FactAnswers))


def _final_answers(material: Material) -> Iterator[str]:
    accuracy = _accuracy(material)
    rows = [] if accuracy is None else [row for row in accuracy.rows if row["hops"]]
    n, n_right = sum(int(row["n"]) for row in rows), sum(round(row["accuracy"] * row["n"]) for row in rows)
    if n:
        share = percent(n_right / n)
        yield f"The final answer alone is right in {n_right:,} of {n:,} ({share}), which luck can bring about."


def _ways_right(found: Comparison) -> str:
    """Return the shares right of all ways, in whole chains where they are known."""
    rows = [found.overall(name) for name in found.names]
    key = "accuracy" if any(row["exact"] is None for row in rows) else "exact"
    what = "answers right" if key == "accuracy" else "without a mistake in any step"
    if len(rows) > 4:
        best = max(rows[1:], key=lambda row: float(row[key]))
        rows = [rows[0], best]
    shares = [f"{_way(row['name'])} {percent(row[key])}" for row in rows]
    return f"Share {what}: {listed(shares)}." if key == "exact" else f"Share of {what}: {listed(shares)}."


def _way(name: str) -> str:
    """Return the name of a way of decoding as it reads inside a sentence."""
    return "no repair" if name == "none" else name


def _ends(found: Pivots) -> str:
    counts = Counter(row["status"] for row in found.rows)
    apart = counts["unread"] + counts["cut"] + counts["unjudged"]
    wrong = len(found.rows) - counts["right"] - apart
    unknown = f"; of {apart} nothing can be said" if apart else ""
    return f"Of {counted(len(found.rows), 'response')}, {wrong} went wrong and {counts['right']} did not{unknown}."


def _known_facts(found: FactAnswers) -> str:
    by_hops = {hops: [row for row in found.answers if row["hops"] == hops] for hops in (1, 2)}
    words = {1: "single facts", 2: "questions that combine two facts"}
    said = [
        f"{sum(row['outcome'] == {1: 'e2', 2: 'e3'}[hops] for row in rows)} of {len(rows)} {words[hops]}"
        for hops, rows in by_hops.items()
        if rows
    ]
    return f"Right: {listed(said)}."


def _breaks(material: Material, facts: Facts) -> Iterator[str]:
    """Yield where answers go wrong: at how many steps, by what mistake, in which part of a set, at which place."""
    if facts.reach is not None:
        yield _by_steps(facts.reach)
    if facts.kinds is not None and facts.kinds.n:
        family, n = next(iter(facts.kinds.families.items()))
        yield f"The first mistake is most often that {_MISTAKES[family]}: {n:,} of {counted(facts.kinds.n, 'mistake')}."
    if facts.kinds is not None and facts.kinds.n_unlocated:
        yield f"At which step is unknown for {counted(facts.kinds.n_unlocated, 'wrong answer')}."
    if (accuracy := _accuracy(material)) is not None:
        yield from _weakest_part(accuracy)
    for found in material.of(Pivots):
        yield from _places(found)


def _by_steps(reach: Reach) -> str:
    easy, hard = reach.easy, reach.hard
    if reach.all.n == reach.all.n_right:
        return "Nowhere in what was asked: no problem went wrong. Longer problems may."
    if easy == hard:
        return f"All problems have {reach.all.hops} steps, so nothing is known of shorter or longer ones."
    steps = (
        f"{percent(easy.share)} are without a mistake at the fewest steps asked ({easy.hops}), {percent(hard.share)} "
        f"at the most ({hard.hops})"
    )
    return f"With more steps: {steps}." if hard.share < easy.share else f"Not where there are more steps: {steps}."


def _weakest_part(accuracy: Accuracy) -> Iterator[str]:
    """Yield the value of a label with the smallest share right, where values are large enough to be compared."""
    sizable = [row for row in accuracy.by_label if row["n"] >= 10]
    labels = Counter((row["task"], row["label"]) for row in sizable)
    parts = [row for row in sizable if labels[row["task"], row["label"]] > 1]
    if not parts:
        return
    worst = min(parts, key=lambda row: float(row["accuracy"]))
    n_right = round(worst["accuracy"] * worst["n"])
    yield (
        f"Of the parts of {title_of(worst['task'])}, {worst['label']} {worst['value']} has the smallest share right: "
        f"{n_right} of {worst['n']} ({percent(worst['accuracy'])})."
    )


def _places(found: Pivots) -> Iterator[str]:
    first = [pivot for pivot in found.pivots if pivot["is_first_error"]]
    certain = sum(pivot["is_certain"] for pivot in first)
    if not first:
        yield "In no response was a place found where it goes wrong for good."
        return
    yield (
        f"In {len(first)} of {counted(len(found.rows), 'response')} there is a place from which on it no longer ends "
        f"right{'' if certain == len(first) else f' ({certain} of them certain)'}."
    )
    shown = next((p for p in first if p["end"] - p["position"] == 1), first[0])
    before, after = shown["before"]["value"], shown["after"]["value"]
    if before is not None and after is not None:
        word = f"the word {shown['token'].strip()!r}" if shown["end"] - shown["position"] == 1 else "one step"
        yield (
            f"In response {shown['trace']}, for example, {word} takes the chance of a right end from "
            f"{percent(before)} to {percent(after)}."
        )


def _found(material: Material) -> Iterator[str]:
    """Yield the first words of what an instrument says of itself, and how much more there is."""
    first = next((finding.summary().splitlines()[0] for finding in material.findings if finding.summary()), "")
    if first:
        yield first if first.endswith((".", "!", "?")) else f"{first}."
        if rest := len(material.findings) - 1:
            yield f"{counted(rest, 'further result')} below."


def _helps(material: Material, facts: Facts) -> Iterator[str]:
    """Yield what was tried against the mistakes, with what it gained and cost."""
    comparisons = material.of(Comparison)
    for found in comparisons[:_MOST_WAYS]:
        yield from _gains(found)
    if not comparisons and (facts.kinds is not None or facts.answers is not None or facts.reach is not None):
        yield "No repair was tried."
    heads = facts.heads
    if heads is not None and heads.n_wrong:
        yield (
            f"Inside the model, switching off one of its {heads.n_heads:,} attention heads (small parts that look "
            f"words up) put {heads.n_fixed:,} of {counted(heads.n_wrong, 'mistake')} right, and left {heads.n_kept:,} "
            f"of {heads.n_right:,} right places right. That is a lead to a repair, not one yet."
        )


def _gains(found: Comparison) -> Iterator[str]:
    base = found.overall(found.baseline)
    rows = [found.overall(name) for name in found.names[1:]]
    key = "accuracy" if base["exact"] is None or any(row["exact"] is None for row in rows) else "exact"
    gain = "gain" if key == "accuracy" else "exact_gain"
    ranked = sorted(rows, key=lambda row: -float(row[gain]))
    for row in ranked[:_MOST_WAYS]:
        low, high = row[f"{gain}_low"], row[f"{gain}_high"]
        verdict = "helps" if low > 0 else "harms" if high < 0 else "makes no difference that can be told from chance"
        n = row["n"] if key == "accuracy" else n_read_of(row)
        was, now = (round(share * n) for share in (row[key] - row[gain], row[key]))
        changed = "" if key == "accuracy" else f"; {row['n_fixed']} put right, {row['n_broken']} spoilt"
        yield f"{row['name']} {verdict}: {now:,} right instead of {was:,} of {n:,}{changed}."
        yield _cost(found, row, base)
    if len(ranked) > _MOST_WAYS:
        clear = sum(row[f"{gain}_low"] > 0 for row in ranked)
        yield f"Of {len(ranked)} ways, {clear} help clearly; the best {_MOST_WAYS} are named here."


def _cost(found: Comparison, row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return what a way costs: what was counted, and how much longer its responses are."""
    counted_costs = found.costs.get(row["name"], {})
    parts = [_COSTS[key].format(value) for key, value in counted_costs.items() if key in _COSTS and value != 1]
    longer = row["tokens"] / base["tokens"] - 1 if base["tokens"] else 0.0
    parts.append(
        "responses are as long as before"
        if abs(longer) < 0.005
        else f"responses are {abs(longer):.0%} {'longer' if longer > 0 else 'shorter'}"
    )
    return f"What it costs: {listed(parts)}."


def _sure(material: Material, facts: Facts) -> Iterator[str]:
    """Yield how far the numbers can be trusted, in words that need no statistics."""
    known = facts.reach.all if facts.reach is not None else facts.answers
    if known is not None:
        yield from _true_share(known.n_right, known.n)
    elif comparisons := material.of(Comparison):
        row = comparisons[0].overall(comparisons[0].baseline)
        key = "accuracy" if row["exact"] is None else "exact"
        n = row["n"] if key == "accuracy" else n_read_of(row)
        yield from _true_share(round(row[key] * n), n, with_way=comparisons[0].baseline)
    for found in material.of(Pivots):
        yield _pivots_trust(found)
    if any(table.answers for table in material.of(ErrorTable)) or facts.reach is not None:
        yield "A mistake is read off the wording, so an unusual but right step may be counted as one."
    if facts.reach is None and facts.answers is None and material.origin is not None and material.origin.written_by:
        yield "Nothing says which answers are right."


def _true_share(n_right: int, n: int, with_way: str = "") -> Iterator[str]:
    if not n:
        return
    whose = f" with {_way(with_way)}" if with_way else ""
    yield f"With more problems like these, the share right{whose} would most likely be {between(*wilson(n_right, n))}."
    if n < _FEW:
        yield f"{counted(n, 'problem')} {'is' if n == 1 else 'are'} few: take the figures as a hint."


def _pivots_trust(found: Pivots) -> str:
    if found.config.get("sampling") is None:
        return f"Each place was continued once, by the {in_words(found.config)}, so its chance is all or nothing."
    rate = found.config.get("error_rate")
    wrong = f" Of the places called certain, at most {float(rate):.0%} should be wrong." if rate is not None else ""
    return f"The chances come from {counted(found.n_continuations, 'continuation')} by {in_words(found.config)}.{wrong}"
