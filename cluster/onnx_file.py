"""A net as an ONNX file: whatever reads these needs nothing of this program, not even the preprocessing.

    images  (N, 3, H, W) float32, RGB, 0 to 255: mean and deviation are dealt with inside
    scores  (N, classes), before the soft-max
    map     (N, classes, h, w), of the dense form alone; `scores` is its mean over space

N is free; H = W = input_size, but of the dense form they, too, are free, and at least that. Its metadata have, as JSON
under the key `verydeep`: `program`, `seal` (of the file that the net came from), `stride` (of the net), and the `card`
(see `checkpoint.Card`), so that the file alone is enough to classify images with (see `classifier`).

The graph is written layer by layer. torch.onnx takes 20 s for it, is not to be kept quiet, and spells local response
normalisation, which ONNX has, in nine operators.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import checker, helper
from torch import nn

from cluster.nets import Trained
from cluster.table import STRIDE, convolutions
from cluster.vgg import VGG
from pipelines.errors import CheckpointError
from pipelines.location import Location

_KEY = "verydeep"
_OPSET, _IR_VERSION = 17, 8  # of 2022: old enough for all that reads ONNX today
_TOLERANCE = 1e-4  # of the largest score
_MOST_BYTES = 2**31 - 2**20  # of weights; a protocol buffer has at most 2 GiB
_FLOAT = onnx.TensorProto.FLOAT


def write(trained: Trained, place: Location, dense: bool) -> None:
    """Whole or not at all, after onnxruntime was seen to compute from it the scores that torch does.

    Raises CheckpointError: it does not, or the net is too large for ONNX; and OSError.
    """
    size = sum(tensor.nbytes for tensor in trained.weights.values())
    if size > _MOST_BYTES:
        raise CheckpointError(f"{place}: weights of {size:,} bytes are too many for ONNX, which takes {_MOST_BYTES:,}")
    net = trained.build()
    content = _encoded(trained, net, dense)
    problem = _problem(content, trained, net, dense)
    if problem is not None:
        raise CheckpointError(f"{place}: not written: {problem}")
    place.write(content)


def _encoded(trained: Trained, net: VGG, dense: bool) -> bytes:
    card, program = trained.card, version("verydeep")
    model = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="verydeep", producer_version=program)
    model.opset_import.append(helper.make_opsetid("", _OPSET))
    content = {"program": f"verydeep {program}", "seal": trained.seal, "stride": STRIDE, "card": asdict(card)}
    helper.set_model_props(model, {_KEY: json.dumps(content)})
    graph, classes, side = _Graph(model.graph, f"VGG-{card.net}"), len(card.classes), card.input_size
    graph.input("images", "N", 3, *(("H", "W") if dense else (side, side)))
    x = graph.features(net, graph.normalised("images", card.mean_rgb, card.pixel_std))
    if dense:
        graph.output(graph.dense(net, x), "N", classes, "h", "w")
        graph.output(graph.mean("map"), "N", classes)
    else:
        graph.output(graph.plain(net, x), "N", classes)
    return bytes(model.SerializeToString())


class _Graph:
    """Layers, written into `graph`, so that it is the only copy of the weights. A node has the name of its output."""

    def __init__(self, graph: onnx.GraphProto, name: str) -> None:
        self._graph = graph
        graph.name = name

    def input(self, name: str, *shape: int | str) -> None:
        self._graph.input.append(helper.make_tensor_value_info(name, _FLOAT, shape))

    def output(self, name: str, *shape: int | str) -> None:
        self._graph.output.append(helper.make_tensor_value_info(name, _FLOAT, shape))

    def normalised(self, x: str, mean_rgb: tuple[float, float, float], pixel_std: float) -> str:
        mean, std = np.reshape(np.array(mean_rgb, np.float32), (3, 1, 1)), np.array(pixel_std, np.float32)
        x = self._node("Sub", "centred", x, self._weight("mean_rgb", mean))
        return self._node("Div", "normalised", x, self._weight("pixel_std", std))

    def features(self, net: VGG, x: str) -> str:
        """See `VGG.features`."""
        for conv in convolutions(net.net):
            if conv.index == 1 and conv.block > 1:
                x = self._pool(f"pool{conv.block - 1}", x)
            layer = net.get_submodule(conv.name)
            x = self._node("Conv", conv.name, x, *self._layer(conv.name, layer), pads=[conv.kernel // 2] * 4)
            if net.batch_norm:
                x = self._batch_norm(conv.norm, net.get_submodule(conv.norm), x)
            x = self._node("Relu", f"{conv.name}/relu", x)
            if conv.name == "conv1_1" and isinstance(net.lrn, nn.LocalResponseNorm):
                x = self._lrn(net.lrn, x)
        return self._pool("pool5", x)

    def plain(self, net: VGG, x: str) -> str:
        x = self._node("Flatten", "flat", x)
        for name in ("fc1", "fc2"):
            x = self._node("Gemm", name, x, *self._layer(name, net.get_submodule(name)), transB=1)
            x = self._node("Relu", f"{name}/relu", x)
        return self._node("Gemm", "scores", x, *self._layer("fc3", net.fc3), transB=1)

    def dense(self, net: VGG, x: str) -> str:
        """See `DenseVGG`."""
        for name, side in (("fc1", net.input_size // STRIDE), ("fc2", 1)):
            x = self._node("Conv", name, x, *self._layer(name, net.get_submodule(name), side))
            x = self._node("Relu", f"{name}/relu", x)
        return self._node("Conv", "map", x, *self._layer("fc3", net.fc3, 1))

    def mean(self, x: str) -> str:
        """Over space."""
        return self._node("Flatten", "scores", self._node("GlobalAveragePool", "mean", x))

    def _pool(self, name: str, x: str) -> str:
        return self._node("MaxPool", name, x, kernel_shape=[2, 2], strides=[2, 2])

    def _lrn(self, lrn: nn.LocalResponseNorm, x: str) -> str:
        return self._node("LRN", "lrn", x, size=lrn.size, alpha=lrn.alpha, beta=lrn.beta, bias=float(lrn.k))

    def _batch_norm(self, name: str, norm: nn.Module, x: str) -> str:
        assert isinstance(norm, nn.BatchNorm2d)
        state = norm.state_dict()
        kinds = ("weight", "bias", "running_mean", "running_var")
        inputs = [self._weight(f"{name}.{kind}", state[kind].numpy()) for kind in kinds]
        return self._node("BatchNormalization", name, x, *inputs, epsilon=norm.eps)

    def _layer(self, name: str, layer: nn.Module, side: int | None = None) -> Iterator[str]:
        """Its weight and bias. `side`: of the kernel that a fully-connected layer becomes."""
        weight, bias = (layer.get_parameter(kind).detach().numpy() for kind in ("weight", "bias"))
        yield self._weight(f"{name}.weight", weight if side is None else weight.reshape(len(weight), -1, side, side))
        yield self._weight(f"{name}.bias", bias)

    def _weight(self, name: str, values: NDArray[np.float32]) -> str:
        self._graph.initializer.add(name=name, data_type=_FLOAT, dims=values.shape, raw_data=values.tobytes())
        return name

    def _node(self, kind: str, output: str, *inputs: str, **attributes: object) -> str:
        self._graph.node.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output


def _problem(content: bytes, trained: Trained, net: VGG, dense: bool) -> str | None:
    """What is wrong with the file's scores, for random pictures: one of the smallest size, and several together, in the
    dense form of another size, whose maps are odd."""
    checker.check_model(content, full_check=True)
    options = onnxruntime.SessionOptions()
    # It would hold the weights twice more while it optimises.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    card, form, rng = trained.card, net.dense() if dense else net, np.random.default_rng(0)
    mean, side = torch.tensor(card.mean_rgb)[:, None, None], card.input_size
    for images, more in ((1, (0, 0)), (2, (33, 70) if dense else (0, 0))):
        pixels = rng.uniform(0, 255, (images, 3, side + more[0], side + more[1])).astype(np.float32)
        with torch.inference_mode():
            first = form((torch.from_numpy(pixels) - mean) / card.pixel_std)
        expected = [first, first.mean(dim=(2, 3))] if dense else [first]
        for ours, theirs in zip(expected, session.run(None, {"images": pixels}), strict=True):
            gap, largest = np.abs(ours.numpy() - theirs).max(), float(ours.abs().max())
            if not gap <= _TOLERANCE * largest:  # what is no number is wrong, too
                return f"onnxruntime's scores are {gap:.2g} off torch's, the largest of which is {largest:.2g}"
    return None
