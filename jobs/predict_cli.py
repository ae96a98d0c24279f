"""`verydeep predict`: what a net sees in images."""

import argparse
import json
import sys
from collections.abc import Iterator

from cluster import nets
from cluster.checkpoint import Card
from cluster.predict import Predictor
from cluster.views import scales_of
from jobs.checkpoints import net_file
from pipelines.errors import DataError, SettingsError
from pipelines.location import Location
from pipelines.still import Unreadable

Best = list[tuple[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Classifies images as the paper's dense test does: the whole image at each scale, and its mirror image if the "
        "net was trained with them, averaged. What cannot be read is told of, and the status is 1."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file of a net, or the folder of a job's stage")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a file; - for standard input")
    parser.add_argument(
        "--scales", type=int, nargs="+", metavar="Q", help="shorter sides (default: the net's S, or its middle)"
    )
    parser.add_argument("--no-mirror", action="store_true", help="leave mirror images out")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes of each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="one document instead of lines")
    parser.set_defaults(verb=_predict)


def _predict(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    if options.top < 1:
        raise SettingsError(f"--top {options.top}: has to be 1 or more")
    trained = nets.load(net_file(options.checkpoint))
    scales = _scales(options.scales, trained.card)
    predictor = Predictor(trained, scales, trained.card.flip and not options.no_mirror)
    found: list[tuple[str, Best]] = []
    for image, best in _predictions(predictor, options.images, options.top):
        found.append((image, best))
        if not options.json:
            print("\n".join([image, *(f"  {100 * share:5.1f} %  {name}" for name, share in best)]), flush=True)
    if options.json:
        print(json.dumps([_entry(image, best) for image, best in found], indent=1, ensure_ascii=False))
    return int(len(found) < len(options.images))


def _scales(given: list[int] | None, card: Card) -> tuple[int, ...]:
    """Raises SettingsError."""
    for scale in given or ():
        if scale < card.input_size:
            raise SettingsError(f"--scales {scale}: is smaller than the net's input, {card.input_size} pixels")
    return scales_of(given or "single", card.scale, card.input_size)


def _predictions(predictor: Predictor, images: list[str], top: int) -> Iterator[tuple[str, Best]]:
    """Those that cannot be read are told of on standard error."""
    for image in images:
        try:
            yield image, predictor.best(_content(image), top)
        except Unreadable as error:
            print(f"verydeep: {image}: {error}", file=sys.stderr)
        except DataError as error:
            print(f"verydeep: {error}", file=sys.stderr)


def _content(image: str) -> bytes:
    return sys.stdin.buffer.read() if image == "-" else Location.of(image).read_bytes()


def _entry(image: str, best: Best) -> dict[str, object]:
    return {"image": image, "predictions": [{"class": name, "probability": share} for name, share in best]}
