"""`verydeep export`: a net into a file that other programs read."""

import argparse

from cluster import export, exported, nets, published, sealed
from cluster.checkpoint import Card
from cluster.nets import Trained
from cluster.table import STRIDE
from jobs.checkpoints import net_file
from pipelines.errors import CheckpointError, SettingsError
from pipelines.location import Location


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a net for other programs: .pth in torchvision's layout (A, B, D and E), .safetensors, or .onnx. Of a "
        "checkpoint with a moving average of weights, that is what is written."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file of a net, or the folder of a job's stage")
    parser.add_argument("out", metavar="OUT", help="its ending says what is written: .pth, .safetensors or .onnx")
    parser.add_argument("--dense", action="store_true", help="of .onnx: the fully convolutional form, for any size")
    parser.set_defaults(verb=_export)


def _export(options: argparse.Namespace) -> None:
    source, out = net_file(options.checkpoint), Location.of(options.out)
    kind = export.ending(out, options.dense)
    _check(source, out)
    trained = nets.load(source)
    export.write(trained, out, options.dense)
    print(f"{out}: {_title(trained)}, {(out.size() or 0) / 1e6:.1f} MB")
    if kind == ".pth":
        print(f"layout: {_layout(trained.card)}")
    print(f"input: {_input(trained.card, kind == '.onnx', options.dense)}")


def _check(source: Location, out: Location) -> None:
    """Raises SettingsError if `out` would take the place of what training has to have."""
    if source.same(out):
        raise SettingsError(f"{out}: would take the place of the file that is exported")
    try:
        notes = sealed.read_head(out).notes
    except CheckpointError:  # another file, or none
        return
    if exported.KEY not in notes:
        raise SettingsError(f"{out}: is a checkpoint, whose place an export does not take")


def _title(trained: Trained) -> str:
    card = trained.card
    norm = " with batch norm" if card.batch_norm else ""
    known = "" if trained.errors is None else f", validation error {100 * trained.errors[0]:.1f} %"
    return f"net {card.net}{norm}, {len(card.classes)} classes{known}"


def _layout(card: Card) -> str:
    """What has to be changed in torchvision's own net before the weights fit."""
    side = card.input_size // STRIDE
    width = f", its layers' widths times {card.width:g}" if card.width != 1 else ""
    pool = f", its avgpool to {side} x {side}" if side != 7 else ""
    return f"torchvision's {published.title(card)}{width}{pool}"


def _input(card: Card, inside: bool, dense: bool) -> str:
    """`inside`: whether mean and deviation are dealt with in the file itself."""
    size = "any size" if dense else f"the middle {card.input_size} x {card.input_size}"
    what = f"RGB, the shorter side rescaled to {sum(card.scale) // 2}, {size}"
    if inside:
        return f"{what}, values from 0 to 255"
    mean, std = ([float(f"{value:.6g}") for value in values] for values in export.normalisation(card))
    return f"{what}, transforms.ToTensor(), transforms.Normalize(mean={mean}, std={std})"
