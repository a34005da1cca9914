"""The process in which `math-verify` runs: reads one request per line, writes one reply per line, and may be killed.

It is started as a script and imports nothing of this package. A request is [seconds, gold, got] as JSON, where `got`
may be null to ask only whether `gold` can be read; the reply is [gold is read, got is read, they are equal].

Sympy may compute for ever, inside C code too. So each request sets an alarm that the system answers by ending the
process, which also holds when the parent died; the memory is limited, since 9**9**9 would take all of it.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not look like a reply
    logging.disable(logging.CRITICAL)
    _limit_memory()
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # the other way of reading takes any number out of a text that is no formula
    ways = [LatexExtractionConfig(boxed_match_priority=0)]
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        seconds, gold, got = json.loads(line)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            wanted, said = (_parsed(parse, ways, text) for text in (gold, got))
            is_equal = bool(wanted and said and verify(wanted, said, timeout_seconds=None))
            reply = [bool(wanted), bool(said), is_equal]
        except (Exception, MemoryError):  # whatever sympy raises on text that is no mathematics
            reply = [False, False, False]
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if most == resource.RLIM_INFINITY else min(_MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _parsed(parse: Callable[..., list[Any]], ways: list[Any], text: str | None) -> list[Any]:
    """Return what a text means, as its expression and its string; empty where it is no formula."""
    if text is None:
        return []
    found = parse("\\boxed{" + text + "}", extraction_config=ways, parsing_timeout=None)
    return found if any(not isinstance(each, str) for each in found) else []


if __name__ == "__main__":
    main()
