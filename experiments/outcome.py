"""What a training leaves to be measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from helpers import detectors
from helpers.training import History


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


def measured(
    trained: nn.Module,
    detect: detectors.Detect,
    history: History,
    held_out,
    device: torch.device,
    **more,
) -> Outcome:
    """The outcome of a trained detector on a held-out split; more: its other attributes.

    detect: images (N, 3, H, W) -> detections, one dictionary per image.
    """
    return Outcome(
        detections=detectors.detect_all(detect, held_out.images, device),
        steps=len(next(iter(history.values()))),
        seconds=history.seconds,
        parameters=sum(p.numel() for p in trained.parameters()),
        weights=trained.state_dict(),
        ms_per_image=detectors.ms_per_image(detect, held_out.images[:30], device),
        **more,
    )
