"""Trace files named on a command line: one to read, or one for each way of decoding the same problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.models.load import load_tokenizer
from chainwright.traces import JsonlTraces, Trace, read_jsonl, read_traces
from chainwright.traces.offsets import decode_with_markers

if TYPE_CHECKING:
    from chainwright.tasks.base import Problem

Ways = Mapping[str, Sequence[Trace]]
Key = tuple[str, int, str, str, str]


def read_ways(
    words: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    problems: Sequence[Problem] | None = None,
    checker: str | None = None,
    *,
    trust_labels: bool = False,
) -> dict[str, list[Trace]]:
    """Return the traces of each way, all in the order of the first one's problems and samples.

    Args:
        words: "name=file" for each way, the baseline first; without a name, the file's own is taken. "file@writer"
            takes the responses of one model of a file that has several.
        tokenizer: Reads files of texts; trace files of `generate` need none.
        problems: The problems of texts, unless their answers are in the files.
        checker: Judges answers that are in the files; None goes by the answer.
        trust_labels: Whether judgements of the files replace ours.

    Raises:
        BadInput: Fewer than two ways, a name twice, no such file or none of judged traces, other problems in one of
            them, a problem and sample twice, or texts without a tokenizer.
        BadTrace: A file is damaged.
    """
    places: dict[str, _Place] = {}
    for word in words:
        name, place = _named(word)
        if name in places:
            raise BadInput(f"Two ways are called {name!r}; give each a name of its own, as in name=file.parquet.")
        places[name] = place
    if len(places) < 2:
        raise BadInput(
            f"A comparison needs two trace files or more; got {len(places)}. Give them as none=a.parquet tcr=b.parquet."
        )
    read = {
        name: _by_problem(place, _read(name, place, tokenizer, problems, checker, trust_labels))
        for name, place in places.items()
    }
    first, order = next(iter(read.items()))
    for name, found in read.items():
        _check_same(first, order, name, found)
    return {name: [_of_same(order[key], found[key], name) for key in order] for name, found in read.items()}


def need_tokenizer(words: Sequence[str]) -> bool:
    """Say whether a way is a file of texts."""
    return any(_named(word)[1].path.suffix != ".parquet" for word in words)


class _Place(NamedTuple):
    """The file of a way, and the model whose responses are taken, "" for all."""

    path: Path
    writer: str


def _named(word: str) -> tuple[str, _Place]:
    """Return the name of a way and its file; a file whose own name has an equals sign is found too."""
    if Path(word).is_file():
        return Path(word).stem, _Place(Path(word), "")
    name, equals, path = word.partition("=")
    name, path = (name, path) if equals and name and path else ("", word)
    file, at, writer = path.rpartition("@")
    place = _Place(Path(file), writer) if at and not Path(path).is_file() else _Place(Path(path), "")
    return name or place.writer or place.path.stem, place


def _read(
    name: str,
    place: _Place,
    tokenizer: PreTrainedTokenizerBase | None,
    problems: Sequence[Problem] | None,
    checker: str | None,
    trust_labels: bool,
) -> list[Trace]:
    path = place.path
    if not path.is_file():
        raise BadInput(f"There is no file {path} (for {name!r}); give trace files, such as generate --out writes.")
    if path.suffix == ".parquet" and problems is None and not place.writer:
        return read_traces(path)
    if tokenizer is None:
        raise BadInput(f"{path} holds texts; name the model whose tokenizer is to read them with --model.")
    writers = (place.writer,) if place.writer else None
    return read_traces(path, tokenizer, problems=problems, checker=checker, writers=writers, trust_labels=trust_labels)


def _by_problem(place: _Place, traces: Sequence[Trace]) -> dict[Key, Trace]:
    path = place.path
    found: dict[Key, Trace] = {}
    for i, trace in enumerate(traces):
        problem = trace.problem
        if problem is None or trace.is_correct is None:
            raise BadInput(
                f"Trace {i} of {path} has no problem to be judged by; compare traces of problems, or name the problems "
                "with --problems."
            )
        key = _key(trace, problem)
        if key in found:
            what = f"{problem.hops} hops" if problem.hops else f"sample {trace.info.get('sample', 0)}"
            raise BadInput(
                f"{path} has the same problem twice (trace {i}: {problem.task}, {what}), so it is not clear which to "
                "pair; give a file with each problem once, or name one of its models as file@model."
            )
        found[key] = trace
    if not found:
        raise BadInput(f"{path} holds no traces.")
    return found


def _key(trace: Trace, problem: Problem) -> Key:
    """Return what pairs a trace with those of other ways."""
    # a problem of a task is the same with other demonstrations
    question = json.dumps(problem.facts, sort_keys=True) if problem.lines else " ".join(problem.prompt.split())
    # in files of other engines questions are numbered as they come, which is no part of what they are
    index = "" if "line" in trace.info else str(trace.info.get("problem", ""))
    # sets of other people have no slots, and go by different names in different files
    return problem.task if problem.slots else "", problem.hops, question, index, str(trace.info.get("sample", 0))


def _of_same(first: Trace, trace: Trace, name: str) -> Trace:
    """Return a trace with the very problem of the first way, from which it may differ in name and labels."""
    assert first.problem is not None and trace.problem is not None
    if first.problem == trace.problem or first.problem.slots:
        return trace
    if first.problem.answer != trace.problem.answer:
        raise BadInput(
            f"The right answer to {trace.problem.prompt[:60]!r} is {trace.problem.answer!r} for {name!r} and "
            f"{first.problem.answer!r} for the first way; name the problems with --problems."
        )
    return replace(trace, problem=first.problem)


def _check_same(first: str, order: Mapping[Key, Trace], name: str, found: Mapping[Key, Trace]) -> None:
    missing, more = order.keys() - found.keys(), found.keys() - order.keys()
    if missing or more:
        raise BadInput(
            f"{name!r} is of other problems than {first!r}: of {len(order)} it lacks {len(missing)}, and it has "
            f"{len(more)} that {first!r} has not; generate both with the same task, hops, -n, seed and rendering."
        )


def tokenizer_of(ways: Ways, model: str | None, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the ids of all ways belong to.

    Args:
        ways: As `read_ways` returns them.
        model: Whose tokenizer it is; None for the model that the traces name.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        BadInput: The traces name no model, or several; it cannot be loaded, or is not theirs.
    """
    adapter = None
    if model is None:
        known = [trace.info for traces in ways.values() for trace in traces]
        named = sorted({str(info.get("model", "")) for info in known})
        if len(named) != 1 or not named[0]:
            said = ", ".join(name or "none" for name in named)
            raise BadInput(f"The traces name these models: {said}; say with --model whose tokenizer wrote them all.")
        model = named[0]
        adapters = {str(info["adapter"]) for info in known if "adapter" in info}
        adapter = adapters.pop() if len(adapters) == 1 else None
    tokenizer = load_tokenizer(model, adapter=adapter, trust_remote_code=trust_remote_code)
    for name, traces in ways.items():
        if decode_with_markers(tokenizer, traces[0].response_ids.tolist()) != traces[0].response:
            raise BadInput(
                f"The tokenizer of {model!r} is not the one that the traces of {name!r} were written with; name the "
                "right one with --model."
            )
    return tokenizer


def read_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, skip_bad: bool, markers: tuple[str, str] | None = None
) -> JsonlTraces:
    """Return the traces of a Parquet or JSONL file, with the lines that were skipped.

    `markers` are those around the thinking of a JSONL file; in a Parquet file it has been found already.

    Raises:
        BadInput: No such file, a file of neither kind, markers that are no pair, or markers for a Parquet file.
        BadTrace: Broken lines without `skip_bad`, or a damaged file.
    """
    if not path.is_file():
        raise BadInput(f"There is no file {path}; give traces as .parquet or .jsonl.")
    if path.suffix == ".parquet":
        if markers is not None:
            raise BadInput(f"--think-markers are for JSONL; {path} is a .parquet file, whose traces are cut already.")
        return JsonlTraces(read_traces(path), [])
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, tokenizer, skip_bad=skip_bad, markers=markers)
    raise BadInput(f"{path} is neither .parquet nor .jsonl; those are the kinds of trace file that can be read.")


def are_judged(traces: Sequence[Trace]) -> bool:
    """Return whether every trace was judged, by its problem or elsewhere."""
    return bool(traces) and all(trace.is_correct is not None for trace in traces)
