"""The nets of Simonyan and Zisserman 2014 (see `table`), and their dense form.

images  (N, 3, H, W) float32, RGB, mean subtracted
scores  (N, classes), before the soft-max; of the dense form (N, classes, h, w)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster import dropout as keyed
from cluster.table import STRIDE, check, convolutions, hidden_widths


class VGG(nn.Module):
    """A net of configuration `net`.

    `input_size`: side of the training crops in pixels, a multiple of 32; `width` multiplies all hidden widths
    (rounded, at least 1), so that small nets of the same shape can be made; `batch_norm` puts one behind each
    convolution, as in torchvision's vgg*_bn.
    """

    def __init__(
        self,
        net: str,
        classes: int = 1000,
        input_size: int = 224,
        width: float = 1.0,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check(net, classes, input_size, width)
        self.net, self.classes, self.input_size, self.width = net, classes, input_size, width
        self.batch_norm = batch_norm
        *block_widths, hidden = hidden_widths(width)
        before = 3
        for conv in convolutions(net):
            after = block_widths[conv.block - 1]
            self.add_module(conv.name, nn.Conv2d(before, after, conv.kernel, padding=conv.kernel // 2))
            if batch_norm:
                self.add_module(conv.norm, nn.BatchNorm2d(after))
            before = after
        # AlexNet's constants (Krizhevsky et al. 2012, section 3.3). LocalResponseNorm multiplies alpha by the mean of
        # the squares where they multiply the sum, hence size times their 1e-4.
        self.lrn = nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0) if net == "A-LRN" else nn.Identity()
        self.fc1 = nn.Linear(before * (input_size // STRIDE) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H // 32, W // 32).

        Pools come before the ReLU, which then has a quarter to do: maxima, gradients and their bits are the same.
        """
        x = images
        for conv in convolutions(self.net):
            x = self.get_submodule(conv.name)(x)
            if self.batch_norm:
                x = self.get_submodule(conv.norm)(x)
            local = conv.name == "conv1_1" and self.net == "A-LRN"
            if local:
                x = self.lrn(F.relu(x, inplace=True))
            if conv.last:
                x = F.max_pool2d(x, 2)
            if not local:
                x = F.relu(x, inplace=True)
        return x

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """`keys` (n,) int64: the images' keys, from which dropout follows; without them it is random."""
        x = self.features(images).flatten(1)
        x = self._drop(F.relu(self.fc1(x)), keys, 1)
        x = self._drop(F.relu(self.fc2(x)), keys, 2)
        return self.fc3(x)  # type: ignore[no-any-return]

    def _drop(self, x: Tensor, keys: Tensor | None, layer: int) -> Tensor:
        if keys is None or not self.training or not self.dropout.p:
            return self.dropout(x)  # type: ignore[no-any-return]
        return keyed.drop(x, keys, layer, self.dropout.p)

    def dense(self) -> "DenseVGG":
        """The fully convolutional form, sharing this net's weights."""
        return DenseVGG(self)


class DenseVGG(nn.Module):
    """The net over images of any size of at least its input size (paper, section 3.2); no dropout.

    Its FC layers are applied at every place where FC-1's input fits into the last feature map: they are convolutions
    there, FC-1 of its input's size, FC-2 and FC-3 of 1x1. As products of matrices they need no copy of FC-1's weights
    in a convolution's layout, which on a CPU would be made in each pass, for more than a small batch's other work.

    Returns (N, classes, h, w), h = H // 32 - side + 1.
    """

    def __init__(self, net: VGG) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.fc3(self.penultimate(images)).movedim(3, 1)  # type: ignore[no-any-return]

    def penultimate(self, images: Tensor) -> Tensor:
        """(N, h, w, C): what FC-3 is given."""
        net = self.net
        side = net.input_size // STRIDE
        windows = net.features(images).unfold(2, side, 1).unfold(3, side, 1)  # (N, C, h, w, side, side)
        x = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.relu(net.fc2(F.relu(net.fc1(x))))


def parameters(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in VGG(net, classes, input_size, width).parameters())
