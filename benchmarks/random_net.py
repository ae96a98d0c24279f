"""A net of random weights that is as sure of itself as a trained one, to test."""

from pathlib import Path

import torch

from cluster import export, init
from cluster.nets import Trained
from cluster.passes import dense_scores
from cluster.settings import StageSettings
from cluster.table import STRIDE
from cluster.train import card
from cluster.vgg import VGG
from pipelines.location import Location
from pipelines.schema import Manifest

_SPREAD = 4.0  # deviation of an image's scores; of a thousand classes the first one's probability is then about a half


def write(settings: StageSettings, manifest: Manifest, device: torch.device, file: Path) -> VGG:
    """Of the training set with this manifest; on the device, channels last. `file`: as `verydeep export` writes it."""
    label = card(settings, manifest)
    net = label.build()
    init.randomise(net, "kaiming", 0.01, seed=0)
    net = net.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = net.input_size + STRIDE
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        spread = float(dense_scores(net)(images).std(dim=1).mean())
    with torch.no_grad():
        net.fc3.weight *= _SPREAD / spread
    weights = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    export.write(Trained(label, weights, seal=""), Location.of(str(file)))
    return net
