"""ONNX files, run by onnxruntime, against torch."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cluster import onnx_file
from cluster.nets import Trained
from pipelines.errors import CheckpointError
from pipelines.location import Location
from tests.cluster.nets import random_net

MEAN, STD = torch.tensor([110.0, 120.0, 100.0])[:, None, None], 50.0


def scores(file: Path, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return onnxruntime.InferenceSession(file).run(None, {"images": images})  # type: ignore[no-any-return]


def pictures(n: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).integers(0, 256, (n, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize(("net", "batch_norm"), [("A-LRN", False), ("B", True), ("C", False), ("E", False)])
def test_a_file_gives_the_nets_scores_for_pixels_as_they_are(net: str, batch_norm: bool, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trained, file = random_net(net, batch_norm=batch_norm), tmp_path / "net.onnx"
    own = trained.build()
    with torch.inference_mode():
        onnx_file.write(trained, Location.of(file), dense=False)
        images = pictures(5, 64, 64)
        (found,) = scores(file, images)
        expected = own((torch.from_numpy(images) - MEAN) / STD)
        torch.testing.assert_close(
            torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )

        onnx_file.write(trained, Location.of(file), dense=True)
        assert np.allclose(scores(file, images)[1], found, atol=1e-4 * np.abs(found).max())
        for n, height, width in ((1, 128, 64), (3, 95, 170)):
            images = pictures(n, height, width)
            dense = own.dense()((torch.from_numpy(images) - MEAN) / STD)
            for ours, theirs in zip((dense, dense.mean(dim=(2, 3))), scores(file, images), strict=True):
                torch.testing.assert_close(
                    torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max())
                )


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    trained = random_net("A")
    onnx_file.write(trained, Location.of(tmp_path / "folder" / "net.onnx"), dense=True)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "folder" / "net.onnx")
    notes = json.loads({entry.key: entry.value for entry in model.metadata_props}["verydeep"])
    assert notes["card"] == json.loads(json.dumps(asdict(trained.card)))
    assert (notes["seal"], notes["stride"]) == (trained.seal, 32)
    assert notes["program"].startswith("verydeep ")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["N", 3, "H", "W"], "map": ["N", 3, "h", "w"], "scores": ["N", 3]}


@pytest.mark.parametrize("fault", ["layer", "number"])
def test_a_file_with_other_scores_than_torchs_is_not_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = random_net("A-LRN")
    if fault == "layer":
        forgotten = lambda self, lrn, x: x  # noqa: E731
        monkeypatch.setattr(onnx_file._Graph, "_lrn", forgotten)
    else:
        weights = {**trained.weights, "fc3.bias": torch.full((3,), torch.nan)}
        trained = replace(trained, weights=weights)
    with pytest.raises(CheckpointError, match=r"net\.onnx: not written: .* off torch's") as caught:
        onnx_file.write(trained, Location.of(tmp_path / "net.onnx"), dense=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_net_beyond_a_protocol_buffer_is_a_line(tmp_path: Path) -> None:
    weights = {"fc1.weight": nn.Parameter(torch.empty(3 << 28, device="meta"))}
    trained = Trained(random_net("A").card, weights, "")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="3,221,225,472 bytes are too many for ONNX"):
        onnx_file.write(trained, Location.of(tmp_path / "net.onnx"), dense=False)
