"""A trained net out of a file of any kind that is taken: what tests, predictions, exports and training start from."""

from dataclasses import dataclass

from torch import Tensor

from cluster import checkpoint
from cluster.checkpoint import Card
from cluster.vgg import VGG
from pipelines.location import Location


@dataclass(frozen=True)
class Trained:
    """A net and what using it takes. `named`: whether the file says what the classes are called; if it does not, they
    are numbered. `seal` stands for all of the file's content."""

    card: Card
    weights: dict[str, Tensor]
    seal: str
    named: bool = True

    def build(self) -> VGG:
        """In evaluation mode, on the CPU."""
        net = self.card.build()
        net.load_state_dict(self.weights)
        return net.eval()


def load(place: Location) -> Trained:
    """Onto the CPU. Executes no code that the file may hold. Raises CheckpointError, naming the file."""
    saved = checkpoint.load(place)
    return Trained(saved.card, saved.delivered, checkpoint.read_head(place).seal)


@dataclass(frozen=True)
class Label:
    """What is known of a net without its weights."""

    card: Card
    seal: str
    named: bool = True


def look(place: Location) -> Label:
    """Cheaply where the file's kind allows. Raises CheckpointError, naming the file."""
    head = checkpoint.read_head(place)
    return Label(head.card, head.seal)
