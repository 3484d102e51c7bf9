"""torchvision's detectors beside the course's: its backbone and anchors, its loop and batches."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from helpers import detectors, training

AS_OURS = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}  # the input is normalised already


class Maps(nn.Module):
    """A body that returns a list of maps, with the face that torchvision's detectors want."""

    def __init__(self, body: nn.Module, out_channels: int | list[int]):
        super().__init__()
        self.body, self.out_channels = body, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): m for i, m in enumerate(self.body(images))}


def train_peer(
    build: Callable[[], nn.Module],
    data,
    steps: int,
    seed: int,
    batch_size: int = 16,
    rate: float = 0.002,
    first: int = 0,
) -> tuple[nn.Module, Callable[[Tensor], list[Mapping[str, Tensor]]], training.History]:
    """A detector of torchvision after `steps` steps, a function that detects, and the history.

    first: the number that the detector gives to class 0 (1 if it counts the background).
    """
    training.seed_everything(seed)
    device = training.pick_device()
    model = build().to(device)

    def losses(images, boxes, labels):
        targets = [{"boxes": b, "labels": k + first} for b, k in zip(boxes, labels)]
        return model(list(images), targets)

    def detect(images):
        return [found | {"labels": found["labels"] - first} for found in model(list(images))]

    batches = detectors.augmented_batches(data, steps, seed, device, batch_size)
    return model, detect, training.fit(model, losses, batches, steps, rate)
