"""VGG nets as torchvision publishes them (torchvision/models/vgg.py), written down layer by layer: an oracle that knows
nothing of ours. Narrower, if a width is given."""

import torch
from torch import Tensor, nn

# models/vgg.py: the lists under "A", "B", "D" and "E".
CONFIGURATIONS: dict[str, list[int | str]] = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # transforms/_presets.py


class Published(nn.Module):
    """`side`: of the maps that the classifier takes; 7 in what is published."""

    def __init__(self, net: str, classes: int, width: float = 1.0, batch_norm: bool = False, side: int = 7) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, hidden = 3, round(4096 * width)
        for sign in CONFIGURATIONS[net]:
            if isinstance(sign, str):
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            after = round(sign * width)
            layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1))
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            before = after
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(before * side * side, hidden),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`images`: as `normalised` gives them."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))  # type: ignore[no-any-return]


def random(net: str, classes: int, width: float, batch_norm: bool = False, side: int = 7) -> Published:
    """With weights, biases and statistics that are all of consequence, and scores of the size of 1."""
    torch.manual_seed(3)
    model = Published(net, classes, width, batch_norm, side)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.normal_(layer.bias, 0, 0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor, 0, 0.1)
    return model.eval()


def normalised(pixels: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """(N, 3, H, W) of grey levels, as transforms.ToTensor and transforms.Normalize make of them."""
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
