"""What a training leaves to be measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One trained variant.

    Attributes:
        detections: on the held-out images, one dictionary per image.
        steps, seconds: of the training; evaluation does not count.
        parameters: trained and frozen.
        weights: the state dict; that of a lecture's own detector, seed 0, is committed.
        ms_per_image: one image at a time, or None.
        curve: AP on the way, as {"steps": ..., "seconds": ..., "AP": ...}.
        extra: other numbers of this experiment, by name.
        targets: what is on the held-out images, where it is not what the benchmark says.
    """

    detections: Sequence[Mapping[str, Tensor]]
    steps: int
    seconds: float
    parameters: int
    weights: Mapping[str, Tensor] | None = None
    ms_per_image: float | None = None
    curve: Sequence[Mapping[str, float]] = ()
    extra: Mapping[str, float] = field(default_factory=dict)
    targets: Sequence[Mapping[str, Tensor]] | None = None
