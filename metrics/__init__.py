"""The five scores of the E2E NLG Challenge as its scorer computes them; eval_metrics.py calls them by name. Left out: GLUE's
scores, which it holds itself."""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """What a metric says: `system` of the whole set, `segments` of every instance alone. What belongs beside the score is
    in `details` for the set and in `columns` for every instance."""
    system: float
    segments: list[float]
    details: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)
