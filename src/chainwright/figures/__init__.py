"""Every figure as a function of plain values that returns a Plotly figure, for notebooks too. None is ever shown.

Findings call these in `plot()`, the report in its sections; they know neither. What comes from elsewhere (error types,
titles) is escaped.
"""

from chainwright.figures.accuracy import HIGH_CHANCE, accuracy_by_hops, accuracy_by_label
from chainwright.figures.back_attention import fits, position_curves, readings, sweep
from chainwright.figures.comparison import SHOWN, hop_curves, threshold_curves, ways_compared
from chainwright.figures.curves import lens_by_depth, table_of
from chainwright.figures.errors import entropy_by_slot, error_types, errors_by_hops
from chainwright.figures.evidence import fixed_and_broken
from chainwright.figures.flow import contrast_curves, flow_map, stages
from chainwright.figures.heads import MAPS, HeadMap, head_map, head_maps, heat_of, roles_of
from chainwright.figures.iteration import (
    HeatMap,
    Ranked,
    Run,
    circuit_maps,
    emergence_curves,
    exact_by_length,
    head_ranking,
    transfer_curves,
)
from chainwright.figures.outcomes import outcome_curves
from chainwright.figures.pivots import value_along
from chainwright.figures.steps import DECADES, log_map, segment_borders, step_curves, step_map
from chainwright.figures.theme import template

__all__ = [
    "DECADES",
    "HIGH_CHANCE",
    "MAPS",
    "SHOWN",
    "HeadMap",
    "HeatMap",
    "Ranked",
    "Run",
    "accuracy_by_hops",
    "accuracy_by_label",
    "circuit_maps",
    "contrast_curves",
    "emergence_curves",
    "entropy_by_slot",
    "error_types",
    "errors_by_hops",
    "exact_by_length",
    "fits",
    "fixed_and_broken",
    "flow_map",
    "head_map",
    "head_maps",
    "head_ranking",
    "heat_of",
    "hop_curves",
    "lens_by_depth",
    "log_map",
    "outcome_curves",
    "position_curves",
    "readings",
    "roles_of",
    "segment_borders",
    "stages",
    "step_curves",
    "step_map",
    "sweep",
    "table_of",
    "template",
    "threshold_curves",
    "transfer_curves",
    "value_along",
    "ways_compared",
]
