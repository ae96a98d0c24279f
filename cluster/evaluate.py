"""The paper's tests (section 3.2): the net over whole images, scores averaged over space, probabilities over mirror
images and scales."""

from contextlib import closing
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster import checkpoint
from cluster.metrics import Totals, label_ranks
from cluster.records import Log, name_unreadable
from cluster.vgg import STRIDE
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.loader import WholeBatches
from pipelines.location import Location
from pipelines.order import part
from pipelines.shards import DataSet


@dataclass(frozen=True)
class Evaluation:
    """One net, tested on one data set. `checkpoint`: whole path or URI; `scales`: Q in pixels, several are averaged."""

    checkpoint: str
    data: str
    scales: tuple[int, ...]
    mirror: bool


def dense_probabilities(dense: nn.Module, images: Tensor, mirror: bool) -> Tensor:
    """(N, classes): the soft-max of the map's mean, averaged with that of the mirror images."""
    views = (images, images.flip(3)) if mirror else (images,)
    return torch.stack([F.softmax(dense(view).mean(dim=(2, 3)), dim=1) for view in views]).mean(dim=0)


def evaluate_share(test: Evaluation, world: World, log: Log = lambda record: None) -> Totals:
    """This worker's part of the test; the parts of all workers add up to the data set.

    `log` is told of images done, counted once a scale, and of those that cannot be decoded.
    """
    saved = checkpoint.load(Location.of(test.checkpoint))
    card = saved.card
    data = DataSet.open(test.data)
    net = card.build()
    net.load_state_dict(saved.delivered)
    dense = net.to(world.device).eval().dense()
    first, last = part(data.rows, world.rank, world.size)
    probabilities = torch.zeros(last - first, len(card.classes))
    labels = torch.zeros(last - first, dtype=torch.int64)
    seen = torch.zeros(last - first, dtype=torch.int64)
    unreadable: set[int] = set()
    with torch.inference_mode():
        for scale in test.scales:
            with closing(WholeBatches(data, scale, card.mean_rgb, card.pixel_std, STRIDE, world.seat)) as batches:
                for batch in batches:
                    rows = batch.rows - first
                    probabilities[rows] += dense_probabilities(dense, batch.images, test.mirror).cpu()
                    labels[rows] = batch.labels.cpu()
                    seen[rows] += 1
                    unreadable |= {image.row for image in batch.replaced}
                    name_unreadable(batch, log)
                    log({"kind": "tested", "images": len(rows)})
    if not bool((seen == len(test.scales)).all()):
        raise TrainingError(f"{test.data}: {int((seen != len(test.scales)).sum())} images were not tested just once")
    probabilities /= len(test.scales)
    return _totals(probabilities, labels, len(unreadable))


def _totals(probabilities: Tensor, labels: Tensor, unreadable: int) -> Totals:
    ranks = label_ranks(probabilities, labels)
    losses = -probabilities.gather(1, labels[:, None]).double().clamp_min(1e-30).log()
    return Totals(len(labels), float(losses.sum()), int((ranks < 1).sum()), int((ranks < 5).sum()), unreadable)
