"""`verydeep export` and `verydeep predict` as they are called."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cluster import export
from cluster.nets import Trained
from jobs.cli import main
from pipelines.classifier import Classifier
from pipelines.loader import WholeBatches
from pipelines.location import Location
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.cluster import layout
from tests.cluster.test_evaluate import written
from tests.cluster.test_export import net
from tests.conftest import encoded
from tests.pipelines.test_graphs import source_bytes

CLASSES = ("ant", "bée", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    made = net(classes=CLASSES, flip=True, scale=(64, 96))
    made.weights["fc3.weight"] *= 20  # so that probabilities differ
    export.write(made, Location.of(tmp_path / "net.safetensors"))
    return made


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    return json.loads(printed(capsys, "predict", *arguments, "--json")[0])  # type: ignore[no-any-return]


def files(folder: Path, images: list[bytes]) -> list[Path]:
    for i, image in enumerate(images):
        (folder / f"{i:02d}").write_bytes(image)
    return [folder / f"{i:02d}" for i in range(len(images))]


def by_hand(trained: Trained, data: DataSet, scale: int, mirror: bool) -> torch.Tensor:
    """(rows, classes): what a dense test sees, one image and one view at a time."""
    card, dense = trained.card, trained.build().dense()
    found = torch.zeros(data.rows, len(card.classes))
    with torch.inference_mode():
        for batch in WholeBatches(data, scale, card.mean_rgb, card.pixel_std, 32, Seat(0, 1, torch.device("cpu"), 1)):
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
                views = [image, image.flip(2)] if mirror else [image]
                found[row] = sum(F.softmax(dense(view[None])[0].mean(dim=(1, 2)), 0) for view in views) / len(views)
    return found


@pytest.mark.parametrize(
    ("arguments", "scales", "mirror"), [([], (80,), True), (["--no-mirror", "--scales", 64, 100], (64, 100), False)]
)
def test_predictions_are_those_of_the_dense_test(
    arguments: list[object], scales: tuple[int, ...], mirror: bool, trained: Trained, picture_set: DataSet,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images = files(tmp_path, source_bytes(picture_set))
    found = as_json(capsys, tmp_path / "net.safetensors", *images, "--top", len(CLASSES), *arguments)
    assert [entry["image"] for entry in found] == [str(image) for image in images]
    expected = torch.stack([by_hand(trained, picture_set, scale, mirror) for scale in scales]).mean(dim=0)
    assert float(expected.max(dim=1).values.std()) > 0.02
    for entry, row in zip(found, expected.tolist(), strict=True):
        shares = [best["probability"] for best in entry["predictions"]]
        assert shares == sorted(shares, reverse=True)
        by_class = {best["class"]: best["probability"] for best in entry["predictions"]}
        assert [by_class[name] for name in CLASSES] == pytest.approx(row, abs=1e-4)


def test_the_five_best_are_printed_with_their_names(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,) = files(tmp_path, [encoded(90, 70, 1)])
    (entry,) = as_json(capsys, tmp_path / "net.safetensors", image)
    lines = printed(capsys, "predict", tmp_path / "net.safetensors", image)[0].splitlines()
    assert lines == [str(image), *(f"  {100 * b['probability']:5.1f} %  {b['class']}" for b in entry["predictions"])]
    assert len(lines) == 6
    assert len(printed(capsys, "predict", tmp_path / "net.safetensors", image, "--top", "99")[0].splitlines()) == 8


def test_an_image_may_come_through_standard_input(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = files(tmp_path, [encoded(90, 70, 1)])
    (by_name,) = as_json(capsys, tmp_path / "net.safetensors", image)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))
    (entry,) = as_json(capsys, tmp_path / "net.safetensors", "-")
    assert entry == {**by_name, "image": "-"}


def test_images_that_cannot_be_read_are_told_of_and_the_others_predicted(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = files(tmp_path, [b"", encoded(90, 70, 1), b"text", encoded(90, 70, 2, "JPEG")[:500], encoded(99, 70, 3)])
    out, err = printed(
        capsys, "predict", tmp_path / "net.safetensors", *images, tmp_path / "none", tmp_path, "--json", status=1
    )
    assert [entry["image"] for entry in json.loads(out)] == [str(images[1]), str(images[4])]
    reasons = ["empty", "not an image", "cannot be decoded: ", "cannot be read: ", "cannot be read: "]
    bad = [images[0], images[2], images[3], tmp_path / "none", tmp_path]
    for line, reason, image in zip(err.splitlines(), reasons, bad, strict=True):
        assert line.startswith(f"verydeep: {image}: {reason}")


def test_wrong_use_is_one_line_and_status_2(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,), place = files(tmp_path, [encoded(90, 70, 1)]), tmp_path / "net.safetensors"
    (tmp_path / "foreign.pth").write_text("no net")
    for arguments, reason in (
        (("predict", place, image, "--scales", 80, 32), "--scales 32: is smaller than the net's input, 64 pixels"),
        (("predict", place, image, "--top", 0), "--top 0: has to be 1 or more"),
        (("predict", tmp_path / "foreign.pth", image), "foreign.pth: neither a checkpoint nor another file of a net"),
        (("predict", tmp_path / "none", image), "none: no such file"),
        (("export", tmp_path / "none", tmp_path / "x.pth"), "none: no such file"),
        (("export", place, tmp_path / "x.bin"), "x.bin: the name has to end in .pth, .safetensors or .onnx"),
        (("export", place, place), "net.safetensors: would take the place of the file that is exported"),
        (("export", place, tmp_path / "x.pth", "--dense"), "dense is of .onnx alone"),
    ):
        out, err = printed(capsys, *arguments, status=2)
        assert (out, len(err.splitlines())) == ("", 1)
        assert err.startswith("verydeep: ")
        assert reason in err
    assert not list(tmp_path.glob("x.*"))


def test_an_export_takes_the_place_of_another_and_of_no_checkpoint(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "net.safetensors"
    (tmp_path / "link.safetensors").symlink_to(place)
    (tmp_path / "hard.safetensors").hardlink_to(place)
    checkpoint = Path(written(tmp_path / "epoch-0001.safetensors", ("oak", "ash")))
    before = place.read_bytes(), checkpoint.read_bytes()
    for out, reason in (
        (f"{tmp_path}/../{tmp_path.name}/net.safetensors", "the place of the file that is exported"),
        (f"file://{place}", "the place of the file that is exported"),
        (tmp_path / "link.safetensors", "the place of the file that is exported"),
        (tmp_path / "hard.safetensors", "the place of the file that is exported"),
        (checkpoint, "epoch-0001.safetensors: is a checkpoint, whose place an export does not take"),
    ):
        assert reason in printed(capsys, "export", place, out, status=2)[1]
    assert (place.read_bytes(), checkpoint.read_bytes()) == before
    for source in (checkpoint, place):
        printed(capsys, "export", source, tmp_path / "x.safetensors")
        (entry,) = as_json(capsys, tmp_path / "x.safetensors", *files(tmp_path, [encoded(90, 70, 1)]), "--top", "1")
    assert entry["predictions"][0]["class"] in CLASSES


def test_a_name_that_is_not_utf_8_is_a_line_and_the_other_images_are_predicted(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, place = os.fsdecode(bytes(tmp_path) + b"/\xff"), tmp_path / "net.safetensors"
    shutil.copy(place, odd)
    (image,) = files(tmp_path, [encoded(90, 70, 1)])
    out, err = printed(capsys, "predict", place, odd, image, "--json", status=1)
    assert len(json.loads(out)) == 1
    lines = [err]
    for arguments in (("predict", odd, image), ("export", odd, "x.pth"), ("export", place, f"{odd}.pth")):
        lines.append(printed(capsys, *arguments, status=2)[1])
    lines.append(printed(capsys, "evaluate", place, "--data", odd, status=2)[1])
    for line in lines:
        assert len(line.splitlines()) == 1
        assert "the path is not UTF-8" in line


def test_an_export_says_what_it_wrote_and_what_the_net_takes(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "export", tmp_path / "net.safetensors", tmp_path / "x.pth")[0]
    written, laid_out, taken = out.splitlines()
    assert written.startswith(f"{tmp_path / 'x.pth'}: net A, 7 classes, validation error 25.0 %, 0.")
    assert laid_out == "layout: torchvision's vgg11, its layers' widths times 0.03, its avgpool to 2 x 2"
    start = "input: RGB, the shorter side rescaled to 80, the middle 64 x 64, transforms.ToTensor(), "
    assert taken.startswith(start)
    mean, std = eval(taken.removeprefix(f"{start}transforms."), {"Normalize": lambda mean, std: (mean, std)})
    pixels = torch.randint(256, (1, 3, 64, 64)).float()
    model = layout.Published("A", 7, 0.03, side=2).eval()
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    scores = model(layout.normalised(pixels, mean, std))
    ours = (pixels - torch.tensor(trained.card.mean_rgb)[:, None, None]) / trained.card.pixel_std
    torch.testing.assert_close(scores, trained.build()(ours), rtol=1e-3, atol=1e-3)


def test_what_is_exported_predicts_the_same(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = files(tmp_path, [encoded(90, 70, i) for i in range(5)])
    place = tmp_path / "net.safetensors"
    expected = as_json(capsys, place, *images)
    assert len({json.dumps(entry["predictions"]) for entry in expected}) == 5
    for name in ("a.pth", "b.safetensors"):
        printed(capsys, "export", place, f"file://{tmp_path}/{name}")
        assert as_json(capsys, tmp_path / name, *images) == expected


def test_an_export_to_dense_onnx_sees_the_same_without_this_program(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = files(tmp_path, [encoded(90 + 20 * i, 70, i, "JPEG") for i in range(5)])
    out = printed(capsys, "export", tmp_path / "net.safetensors", tmp_path / "x.onnx", "--dense")[0]
    assert out.splitlines()[1] == "input: RGB, the shorter side rescaled to 80, any size, values from 0 to 255"
    classifier = Classifier(tmp_path / "x.onnx")
    for image, entry in zip(images, as_json(capsys, tmp_path / "net.safetensors", *images), strict=True):
        best = classifier.best(image.read_bytes())
        assert [name for name, _ in best] == [one["class"] for one in entry["predictions"]]
        assert [share for _, share in best] == pytest.approx(
            [one["probability"] for one in entry["predictions"]], abs=1e-4
        )
