"""Trace files named on a command line: one to read, or one for each way of decoding the same problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.models.load import load_tokenizer
from chainwright.traces import JsonlTraces, Trace, read_jsonl, read_traces
from chainwright.traces.offsets import decode_with_markers

Ways = Mapping[str, Sequence[Trace]]
Key = tuple[str, int, str, str, str]


def read_ways(words: Sequence[str]) -> dict[str, list[Trace]]:
    """Return the traces of each way, all in the order of the first one's problems.

    Args:
        words: "name=file.parquet" for each way, the baseline first; without a name, the file's own is taken.

    Raises:
        BadInput: Fewer than two ways, a name twice, no such file or none of judged traces, other problems in one of
            them, or a problem twice.
        BadTrace: A file is damaged.
    """
    places: dict[str, Path] = {}
    for word in words:
        name, path = _named(word)
        if name in places:
            raise BadInput(f"Two ways are called {name!r}; give each a name of its own, as in name=file.parquet.")
        places[name] = path
    if len(places) < 2:
        raise BadInput(
            f"A comparison needs two trace files or more; got {len(places)}. Give them as none=a.parquet tcr=b.parquet."
        )
    read = {name: _by_problem(name, path) for name, path in places.items()}
    first, order = next(iter(read.items()))
    for name, found in read.items():
        _check_same(first, order, name, found)
    return {name: [found[key] for key in order] for name, found in read.items()}


def _named(word: str) -> tuple[str, Path]:
    """Return the name of a way and its file; a file whose own name has an equals sign is found too."""
    if Path(word).is_file():
        return Path(word).stem, Path(word)
    name, equals, path = word.partition("=")
    return (name, Path(path)) if equals and name and path else (Path(word).stem, Path(word))


def _by_problem(name: str, path: Path) -> dict[Key, Trace]:
    if not path.is_file():
        raise BadInput(f"There is no file {path} (for {name!r}); give trace files that generate --out wrote.")
    if path.suffix != ".parquet":
        raise BadInput(
            f"{path} is no .parquet file; only those keep the problems, without which nothing can be paired. "
            "Make them with generate --out."
        )
    found: dict[Key, Trace] = {}
    for i, trace in enumerate(read_traces(path)):
        problem = trace.problem
        if problem is None or trace.is_correct is None:
            raise BadInput(f"Trace {i} of {path} has no problem to be judged by; compare traces of problems.")
        # a problem of a task is the same with other demonstrations; several responses have an index and a number each
        question = json.dumps(problem.facts, sort_keys=True) if problem.lines else problem.prompt
        index, sample = (str(trace.info.get(name, "")) for name in ("problem", "sample"))
        key = (problem.task, problem.hops, question, index, sample)
        if key in found:
            raise BadInput(
                f"{path} has the same problem twice (trace {i}: {problem.task}, {problem.hops} hops), so it is not "
                "clear which to pair; give a file with each problem once."
            )
        found[key] = trace
    if not found:
        raise BadInput(f"{path} holds no traces.")
    return found


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
