"""What a net makes of single images: the dense test of the paper (section 3.2) without a data set."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.checkpoint import Card
from cluster.nets import Trained
from cluster.table import STRIDE
from pipelines import still


class Predictor:
    """A net that takes encoded images, on the CPU.

    `scales`: Q, several are averaged; `mirror`: and so is the mirror image.
    """

    def __init__(self, trained: Trained, scales: Sequence[int], mirror: bool) -> None:
        self.card: Card = trained.card
        self._dense: nn.Module = trained.build().dense()
        self._scales, self._mirror = scales, mirror

    def probabilities(self, encoded: bytes) -> Tensor:
        """(classes,), whose sum is 1. Raises Unreadable."""
        with torch.inference_mode():
            return torch.stack([self._at(encoded, scale) for scale in self._scales]).mean(dim=0)

    def best(self, encoded: bytes, count: int) -> list[tuple[str, float]]:
        """The most probable classes, at most `count` of them, and their probabilities; of equals the first one first.

        Raises Unreadable.
        """
        values, places = self.probabilities(encoded).sort(descending=True, stable=True)
        best = zip(places[:count].tolist(), values[:count].tolist(), strict=True)
        return [(self.card.classes[i], value) for i, value in best]

    def _at(self, encoded: bytes, scale: int) -> Tensor:
        """Scores are averaged over space, probabilities over the image and its mirror image."""
        card = self.card
        image = torch.from_numpy(still.prepare(encoded, scale, card.mean_rgb, card.pixel_std, STRIDE))
        views = torch.stack([image, image.flip(2)] if self._mirror else [image])
        return F.softmax(self._dense(views).mean(dim=(2, 3)), dim=1).mean(dim=0)
