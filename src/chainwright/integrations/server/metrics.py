"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chainwright.integrations.server.choice import Choice
from chainwright.integrations.server.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Engine):
        self.engine, self.registry = engine, CollectorRegistry()
        self.requests = Counter(
            "chainwright_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.answers = Counter("chainwright_answers", "Answers, by how they ended.", ["finish"], registry=self.registry)
        self.prompt_tokens = self._by_repair("prompt_tokens", "Tokens of prompts.")
        self.tokens = self._by_repair("tokens", "Tokens written.")
        self.flagged = self._by_repair("flagged_tokens", "Tokens that a repair flagged.")
        self.changed = self._by_repair("changed_tokens", "Tokens that a repair changed.")
        self.extra = self._by_repair("extra_tokens", "Tokens that a repair ran again.")
        self.first = Histogram(
            "chainwright_first_token_seconds", "Time to the first token.", buckets=_SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "chainwright_answer_seconds", "Time of whole answers.", buckets=_SECONDS, registry=self.registry
        )
        for name, words in (
            ("rows", "Rows that are being decoded."),
            ("waiting", "Answers that wait for a row."),
            ("steps", "Passes of the model."),
            ("joined", "Rows that entered while others were being decoded."),
            ("failed", "Passes that raised."),
        ):
            gauge = Gauge(f"chainwright_{name}", words, registry=self.registry)
            gauge.set_function(partial(self._load, f"n_{name}"))

    def _by_repair(self, name: str, words: str) -> Counter:
        return Counter(f"chainwright_{name}", words, ["repair"], registry=self.registry)

    def _load(self, name: str) -> float:
        return float(getattr(self.engine.load, name))

    def count(self, choices: Sequence[Choice]) -> None:
        """Count answers that are over."""
        for choice in choices:
            repair = "+".join(choice.wanted.repairs) or "none"
            self.answers.labels(choice.finish or "cancelled").inc()
            self.prompt_tokens.labels(repair).inc(len(choice.wanted.ids))
            self.tokens.labels(repair).inc(len(choice.written))
            self.flagged.labels(repair).inc(choice.n_flagged)
            self.changed.labels(repair).inc(choice.n_changed)
            self.extra.labels(repair).inc(choice.n_extra_tokens)
            if choice.first_at is not None:
                self.first.observe(choice.first_at - choice.since)
            self.whole.observe(time.monotonic() - choice.since)

    def text(self) -> bytes:
        """Return all of them as text."""
        return generate_latest(self.registry)
