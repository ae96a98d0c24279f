"""Keys of posteriors."""

from cluster.views import View, views
from jobs import looks


def test_posteriors_of_another_view_or_precision_have_another_key() -> None:
    every = [
        view
        for precision in ("float32", "tf32", "bf16")
        for mirror in (True, False)
        for view in views("both", (256, 384), mirror, precision)  # type: ignore[arg-type]
    ]
    keys = {looks.key(seal, view, data) for view in every for seal in ("s", "t") for data in ("d", "e")}
    assert len(keys) == 4 * len(every) == 96


def test_those_that_were_made_before_there_was_a_choice_are_found() -> None:
    """The key that version 0.1.0 gave."""
    assert looks.key("seal", View("dense", 384, True), "data") == "1f0d8288b68f8cfc"
