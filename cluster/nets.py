"""A trained net out of a file of any kind that is taken: what tests, predictions, exports and training start from.

a checkpoint of this program    its moving average of weights, if there is one (`checkpoint`)
what `verydeep export` wrote    .safetensors or .pth (`exported`)
torchvision's VGG nets          A, B, D, E, with and without batch norm, in files of torch.save, by themselves or as
                                training scripts keep them, and in safetensors (`published`, `foreign`)

A file's kind is told by its content. Whatever it holds, none of it is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cluster import checkpoint, exported, foreign, published, sealed
from cluster.checkpoint import Card, Progress
from cluster.exported import Note
from cluster.vgg import VGG
from pipelines.errors import CheckpointError, DamagedError, first_line
from pipelines.location import Location


@dataclass(frozen=True)
class Trained:
    """A net and what using it takes. `named`: whether the file says what the classes are called; if it does not, they
    are numbered. `seal` stands for all of the file's content. `errors`: top-1 and top-5 on the middle crops of the
    validation set, if the file knows."""

    card: Card
    weights: dict[str, Tensor]
    seal: str
    named: bool = True
    errors: tuple[float, float] | None = None

    def build(self) -> VGG:
        """In evaluation mode, on the CPU."""
        net = self.card.build()
        net.load_state_dict(self.weights)
        return net.eval()


@dataclass(frozen=True)
class Label:
    """What is known of a net without its weights."""

    card: Card
    seal: str
    named: bool = True


def load(place: Location) -> Trained:
    """Onto the CPU. Executes no code that the file may hold. Raises CheckpointError, naming the file."""
    if not _sealed(place):
        note, weights, seal = _foreign(place, mapped=False)
        return Trained(note.card, weights, seal, note.named, note.errors)
    content, tensors = sealed.load(place)
    if exported.KEY in content.notes:
        note = _noted(content.notes, place)
        return Trained(note.card, tensors, content.seal, note.named, note.errors)
    saved = checkpoint.unpacked(content, tensors, place)
    return Trained(saved.card, saved.delivered, content.seal, errors=_errors(saved.progress))


def look(place: Location) -> Label:
    """Cheaply where the file's kind allows. Raises CheckpointError, naming the file."""
    if not _sealed(place):
        note, _, seal = _foreign(place, mapped=True)
        return Label(note.card, seal, note.named)
    content = sealed.read_head(place)
    if exported.KEY in content.notes:
        note = _noted(content.notes, place)
        return Label(note.card, content.seal, note.named)
    return Label(checkpoint.head_of(content, place).card, content.seal)


def _sealed(place: Location) -> bool:
    """Whether this program wrote the file, and not torch or safetensors."""
    opening = _opening(place)
    return opening[8 : 8 + len(sealed.OPENING)] == sealed.OPENING


def _opening(place: Location) -> bytes:
    try:
        return bytes(place.read(0, 8 + len(sealed.OPENING)))
    except FileNotFoundError as error:
        raise DamagedError(f"{place}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror or first_line(error)}") from error


def _foreign(place: Location, mapped: bool) -> tuple[Note, dict[str, Tensor], str]:
    opening = _opening(place)
    if opening[8:9] == b"{":  # behind the head's length, whose first byte may be any
        found = foreign.safetensors_file(place, mapped)
    elif opening.startswith((foreign.ZIP, foreign.PICKLE)):
        found = foreign.torch_file(place, mapped)
    else:
        raise CheckpointError(f"{place}: neither a checkpoint nor another file of a net (.safetensors, .pth)")
    try:
        return *_published(found), found.seal
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


def _published(found: foreign.Contents) -> tuple[Note, dict[str, Tensor]]:
    """In torchvision's layout. Raises CheckpointError, without the file's name."""
    own = found.notes.get(exported.KEY)
    if own is None:
        card = published.card_of(found.state)
        return Note(card, named=False), published.coloured(published.weights_of(found.state, card))
    note = exported.read(own)
    return note, published.weights_of(found.state, note.card)


def _noted(notes: Mapping[str, str], place: Location) -> Note:
    try:
        return exported.read(notes)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


def _errors(progress: Progress) -> tuple[float, float] | None:
    """Of a checkpoint that was written at an epoch's end: such weights were validated."""
    if progress.step or not progress.epochs:
        return None
    last = progress.epochs[-1]
    return 1 - last.validation_accuracy, 1 - last.validation_accuracy5
