"""Traces: a question and a response as tokens, cut into segments and steps, and the files that store them."""

from chainwright.markers.known import ThinkMarkers
from chainwright.traces.jsonl import BadLine, JsonlTraces, read_jsonl
from chainwright.traces.live import LiveSteps, Place
from chainwright.traces.offsets import Tokenizer, TokenOffsets, token_offsets
from chainwright.traces.reading import BadRecord, TraceSet, TraceSource, read_traces
from chainwright.traces.segments import (
    ONE_LINE_ONE_STEP,
    STYLES,
    SegmentConfig,
    Segments,
    Span,
    Style,
    detect_style,
    segment,
)
from chainwright.traces.store import SCHEMA_VERSION, write_traces
from chainwright.traces.trace import Trace, TraceSlot

__all__ = [
    "ONE_LINE_ONE_STEP",
    "SCHEMA_VERSION",
    "STYLES",
    "BadLine",
    "BadRecord",
    "JsonlTraces",
    "LiveSteps",
    "Place",
    "SegmentConfig",
    "Segments",
    "Span",
    "Style",
    "ThinkMarkers",
    "TokenOffsets",
    "Tokenizer",
    "Trace",
    "TraceSet",
    "TraceSlot",
    "TraceSource",
    "detect_style",
    "read_jsonl",
    "read_traces",
    "segment",
    "token_offsets",
    "write_traces",
]
