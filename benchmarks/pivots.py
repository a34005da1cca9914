"""Pivots against the truth: on the seven tasks, where the slot map says at which token a response first went wrong.

python benchmarks/pivots.py [--n 5] [--fixed 4 8 16 24] [--out table.md]
python benchmarks/pivots.py --simulate

The second runs the search alone on made-up values, without a model, and prints how often it is right.

Inside the band the model mostly succeeds, and wrong responses are drawn at temperature 1.3. Beyond it there are one or
two hops more, and wrong responses are greedy. Continuations are always drawn at temperature 1. Every way of searching
looks at the same responses:

- `4 per step end` and so on: the end of every step is continued so often, and the fall is read off the shares.
- `sequential`: what `pivots` does.
- `gold chain`: the same with a perfect completer, which knows whether everything so far is right.

A first wrong slot may be harmless: a letter recited wrongly of which the running word is right. It counts as such if
the value after its step is within the drop of the value before it, by the most continuations; the second table is
without.

The draws are pooled, so that 8 per step end are the first 8 of 24; costs are counted as if they were not.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from time import process_time
from typing import Any, NamedTuple

from chainwright import tasks
from chainwright._tables import table
from chainwright.decode.run import generate
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.completers import Asked, Completer, Ending, GoldChain, ModelCompleter
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.run import find_pivots
from chainwright.diagnose.pivots.search import Search
from chainwright.diagnose.pivots.tally import Tally
from chainwright.models.load import LoadedModel, load_model
from chainwright.traces import Trace

INSIDE = {"parity": 11, "mdm": 2, "llc": 8, "clf": 12, "moas": 11, "nums": 8, "objc": 9}
BEYOND = {"parity": 13, "mdm": 3, "llc": 9, "clf": 14, "moas": 13, "nums": 11, "objc": 11}
PROBLEMS_AT_ONCE, MOST_PROBLEMS = 32, 192


class Pool(Completer):
    """Makes each continuation of another completer once."""

    def __init__(self, inner: Completer) -> None:
        self.inner, self.name, self.is_exact, self.sampling = inner, inner.name, inner.is_exact, inner.sampling
        self.known: dict[tuple[int, ...], list[Ending]] = defaultdict(list)

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        missing = []
        for each in asked:
            n_had = len(self.known[each.prefix])
            if each.first + each.n > n_had:
                missing.append(each._replace(first=n_had, n=each.first + each.n - n_had))
        for each, endings in zip(missing, self.inner.complete(missing, seed), strict=True):
            self.known[each.prefix] += endings
        return [self.known[each.prefix][each.first : each.first + each.n] for each in asked]

    def forget(self) -> None:
        self.inner.forget()


class Case(NamedTuple):
    """A wrong response, whose first error the slot map knows."""

    task: str
    trace: Trace


def wrong_responses(loaded: LoadedModel, cells: Mapping[str, int], n: int, temperature: float) -> list[Case]:
    """Return up to `n` wrong responses per task that have a first wrong token and an answer."""
    cases = []
    for task, hops in cells.items():
        found: list[Trace] = []
        for start in range(0, MOST_PROBLEMS, PROBLEMS_AT_ONCE):
            problems = tasks.sample(task, hops, start + PROBLEMS_AT_ONCE, 0, rendering="short")[start:]
            traces = generate(
                *loaded, problems, sampling=Sampling(temperature=temperature), first_row=start, progress=False
            )
            found += [t for t in traces if t.outcome == "wrong" and t.first_error_position is not None]
            if len(found) >= n:
                break
        cases += [Case(task, trace) for trace in found[:n]]
    return cases


def verdict(found: Pivots, i: int, trace: Trace) -> str:
    """Return how far the step that was found is from that of the first wrong token."""
    row = found.rows[i]
    if row["status"] not in ("found", "likely") or row["step"] is None:
        return "not found"
    position = trace.first_error_position
    assert position is not None
    true_step = next(k for k, (start, end) in enumerate(trace.steps) if start <= position < end)
    off = abs(row["step"] - true_step)
    return "same step" if off == 0 else "one off" if off == 1 else "farther"


def scored(way: str, found: Pivots, cases: Sequence[Case]) -> dict[str, Any]:
    """Return one row of the table."""
    steps = Counter(verdict(found, i, case.trace) for i, case in enumerate(cases))
    positions = [row["position"] for row in found.rows]
    located = [(p, c.trace.first_error_position) for p, c in zip(positions, cases, strict=True) if p is not None]
    to_step = [row["n_to_step"] for row in found.rows if row["n_to_step"] is not None]
    ends = [len(case.trace.steps) for case in cases]
    every = len(cases)
    return {
        "way": way,
        "n": every,
        "same step": steps["same step"],
        "one off": steps["one off"],
        "farther": steps["farther"],
        "not found": steps["not found"],
        "same token": sum(p == true for p, true in located) if located else None,
        "continuations": round(statistics.mean(row["n_continuations"] for row in found.rows), 1),
        "to the step": round(statistics.mean(to_step), 1) if to_step else None,
        "of 10 per step end": f"{statistics.mean(to_step) / (10 * statistics.mean(ends)):.0%}" if to_step else None,
        "tokens": round(statistics.mean(row["n_tokens"] for row in found.rows)),
    }


def ways(loaded: LoadedModel, cases: Sequence[Case], fixed: Sequence[int]) -> dict[str, Pivots]:
    """Return what every way of searching finds."""
    own = Pool(ModelCompleter(*loaded, Sampling(temperature=1.0)))
    traces = [case.trace for case in cases]

    def run(completer: Completer, **settings: Any) -> Pivots:
        config = PivotConfig(temperature=1.0, n_alternatives=0, **settings)
        return find_pivots(*loaded, traces, config=config, completer=completer, progress=False)

    found = {"sequential": run(own), "gold chain": run(GoldChain(loaded.tokenizer))}
    # the most first: the others are its beginnings
    by_number = {n: run(own, per_boundary=n, to="step") for n in sorted(fixed, reverse=True)}
    return {**{f"{n} per step end": by_number[n] for n in sorted(fixed)}, **found}


def value_at(found: Pivots, i: int, length: int) -> float | None:
    """Return the value of a prefix; None if it was not measured."""
    tally = found.tallies(i).get(length)
    return None if tally is None or tally.value != tally.value else tally.value


def around_truth(most: Pivots, i: int, trace: Trace) -> tuple[float | None, float | None]:
    """Return the values before and after the step of the first wrong token."""
    position = trace.first_error_position
    assert position is not None
    start, end = next((start, end) for start, end in trace.steps if start <= position < end)
    return value_at(most, i, start), value_at(most, i, end)


def is_harmless(most: Pivots, i: int, trace: Trace) -> bool:
    """Say whether the response can still end right after its first wrong token as well as before it."""
    before, after = around_truth(most, i, trace)
    drop = PivotConfig().drop
    return before is not None and after is not None and before > drop and before - after <= drop


def where_it_fails(found: Mapping[str, Pivots], most: Pivots, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the responses of which the sequential search says something else than the slot map."""
    sequential, gold, rows = found["sequential"], found["gold chain"], []
    for i, case in enumerate(cases):
        row, error = sequential.rows[i], case.trace.first_error
        if row["position"] == case.trace.first_error_position:
            continue
        assert error is not None
        before, after = around_truth(most, i, case.trace)
        rows.append(
            {
                "task": case.task,
                "first wrong slot": error.error_type,
                "token": case.trace.first_error_position,
                "value before its step": before,
                "after its step": after,
                "sequential says": row["status"],
                "at token": row["position"]
                if row["position"] is not None or row["low"] is None
                else f"> {row['low'] - 1}",
                "of the question": value_at(sequential, i, case.trace.response_start),
                "gold chain at": gold.rows[i]["position"],
            }
        )
    return rows


def taken(found: Pivots, kept: Sequence[int]) -> Pivots:
    """Return some responses of a finding, for counting: their rows alone are renumbered."""
    return replace(found, rows=[found.rows[i] for i in kept])


N_STEPS, PER_STEP, N_RUNS = 10, 10, 400


def levels(*parts: tuple[int, float]) -> list[float]:
    """Return the value of each prefix; each part is a number of tokens and the value that begins there."""
    n = N_STEPS * PER_STEP
    return [next(v for at, v in reversed(parts) if at <= i) for i in range(n)] + [0.0]


def one_fall(high: float, low: float) -> Callable[[Random], list[float]]:
    return lambda rng: levels((0, high), (rng.randrange(1, N_STEPS * PER_STEP), low))


def two_falls(rng: Random) -> list[float]:
    """A fall, a recovery, and the fall that counts."""
    first, back, last = sorted(rng.sample(range(2, N_STEPS * PER_STEP), 3))
    return levels((0, 1.0), (first, 0.05), (back, 1.0), (last, 0.0))


def stairs(rng: Random) -> list[float]:
    """Falls of just the drop, which no search should claim."""
    drop = PivotConfig().drop
    return levels(*((i * PER_STEP, max(0.0, 1 - drop * i)) for i in range(N_STEPS)))


PROFILES: dict[str, Callable[[Random], list[float]]] = {
    "falls from 1 to 0": one_fall(1.0, 0.0),
    "falls from 0.9 to 0.05": one_fall(0.9, 0.05),
    "falls from 0.6 to 0": one_fall(0.6, 0.0),
    "falls from 0.8 to 0.2": one_fall(0.8, 0.2),
    "falls, recovers and falls": two_falls,
    "falls by just the drop, five times": stairs,
    "falls evenly": lambda rng: levels(*((i, 1 - i / (N_STEPS * PER_STEP)) for i in range(N_STEPS * PER_STEP))),
}


def simulated(make: Callable[[Random], list[float]], config: PivotConfig) -> dict[str, Any]:
    """Return how the search ends on values of one kind, as shares of all runs."""
    rng, ends = Random(0), list(range(1, N_STEPS * PER_STEP + 2, PER_STEP))
    counts: Counter[str] = Counter()
    spent, to_step = [], []
    for _ in range(N_RUNS):
        values = make(rng)
        search = Search(ends, config, {ends[-1]: Tally(known=0.0)})
        while wanted := search.wanted():
            for length, n in wanted.items():
                n_right = sum(rng.random() < values[length - 1] for _ in range(n))
                search.add(length, Tally(n_right, n - n_right))
        truth = next((i for i in range(len(values) - 1) if values[i] - max(values[i + 1 :]) > config.drop), None)
        outcome, step = search.outcome, search.outcome.step
        spent.append(search.n_spent)
        to_step += [] if outcome.n_to_step is None else [outcome.n_to_step]
        counts[outcome.status] += 1
        if step is not None and truth is not None:
            counts["right step"] += step.before <= truth + 1 < step.after
        if outcome.is_token and outcome.fall is not None:
            counts["token"] += 1
            counts["right token"] += truth is not None and outcome.fall.before == truth + 1
        if outcome.status == "found" and step is not None:
            counts["false"] += values[step.before - 1] - values[step.after - 1] <= config.drop + 1e-9
    shares = {
        name: f"{counts[name] / N_RUNS:.0%}" for name in ("found", "likely", "right step", "token", "right token")
    }
    return {
        **shares,
        "found where it does not fall so": f"{counts['false'] / N_RUNS:.1%}",
        "continuations": round(statistics.mean(spent), 1),
        "to the step": round(statistics.mean(to_step), 1) if to_step else None,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="wrong responses per task")
    parser.add_argument("--fixed", type=int, nargs="+", default=[4, 8, 16, 24], help="continuations per step end")
    parser.add_argument("--tasks", nargs="+", default=list(INSIDE), choices=list(INSIDE))
    parser.add_argument("--out", type=Path, help="file for the tables; they are printed either way")
    parser.add_argument("--simulate", action="store_true", help="run the search alone, on made-up values")
    asked = parser.parse_args(arguments)
    if asked.simulate:
        found = [{"the value": name, **simulated(make, PivotConfig())} for name, make in PROFILES.items()]
        print("\n".join(table(found)))
        return
    loaded, lines = load_model("reasoner", device="cpu"), list[str]()
    for name, cells, temperature, fixed in (
        ("Inside the band, responses drawn at temperature 1.3", INSIDE, 1.3, asked.fixed),
        ("Beyond the band, greedy responses", BEYOND, 0.0, asked.fixed[-2:-1] or asked.fixed),
    ):
        since = process_time()
        cases = wrong_responses(loaded, {task: cells[task] for task in asked.tasks}, asked.n, temperature)
        found = ways(loaded, cases, fixed)
        most = found[f"{max(fixed)} per step end"]
        harmful = [i for i, case in enumerate(cases) if not is_harmless(most, i, case.trace)]
        title = ", ".join(f"{task} {cells[task]}" for task in asked.tasks)
        text = [f"### {name} ({title} hops)", ""]
        text += [*table([scored(way, each, cases) for way, each in found.items()]), ""]
        if 0 < len(harmful) < len(cases):
            text += [f"Without {len(cases) - len(harmful)} whose first wrong slot is harmless:", ""]
            some = [cases[i] for i in harmful]
            text += [*table([scored(way, taken(each, harmful), some) for way, each in found.items()]), ""]
        by_status = Counter(row["status"] for row in found["sequential"].rows)
        text.append("Sequential: " + ", ".join(f"{status} {n}" for status, n in by_status.most_common()) + ".")
        if missed := where_it_fails(found, most, cases):
            text += ["", "Where the sequential search and the slot map differ:", "", *table(missed)]
        text += ["", f"{process_time() - since:.0f} CPU seconds.", ""]
        print("\n".join(text), flush=True)
        lines += text
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
