"""`verydeep stop`: a job that runs elsewhere saves a checkpoint and ends."""

import argparse
import time
from collections.abc import Iterator

from jobs.holder import Holder
from jobs.lease import EXPIRY_SECONDS, LEASE, LOOK_SECONDS, STOP, Held, Stillness, ask_to_stop
from jobs.plan import count, place
from jobs.slot import Slot
from jobs.store import Store
from pipelines.errors import ClusterError, LeaseError, first_line
from pipelines.location import Location, persistently


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Asks the driver that runs a job, wherever that is, to save checkpoints and to end, and waits until it has. "
        "`verydeep run` goes on from there. Ctrl-C ends the waiting alone."
    )
    parser.add_argument("job", metavar="JOB", help="a job file, or the folder of a run")
    parser.add_argument(
        "--now", action="store_true", help="without saving: what came after the last checkpoint is lost"
    )
    parser.set_defaults(verb=_stop)


def _stop(options: argparse.Namespace) -> None:
    from jobs import stored  # slow import

    root = stored.store_of(options.job).root
    slot = Slot(root / LEASE)
    try:
        held = Held.of(persistently(slot.read, slot.place))
        if held is None:
            raise LeaseError(f"nobody runs job {root.name} ({root})")
        if held.holder.alive() is not False:
            ask_to_stop(root, held, options.now)
            how = "ends" if options.now else "saves its checkpoints and ends"
            print(f"Asked {held.holder}, since {held.holder.since}; waiting until it {how}", flush=True)
        _wait(slot, held.holder, root)
    except OSError as error:
        raise ClusterError(f"storage: {root} cannot be reached: {first_line(error)}") from error
    print(f"Job {root.name} has stopped; `verydeep run` goes on with it")
    for line in _standing(Store(root)):
        print(line)


def _wait(slot: Slot, holder: Holder, root: Location) -> None:
    """Until `holder` has given the lease up. Raises LeaseError: it will not, being gone; OSError."""
    still = Stillness()
    while True:
        text = persistently(slot.read, slot.place)
        held = Held.of(text)
        if held is None or held.holder.id != holder.id:
            return
        alive = holder.alive()
        if alive is False or (alive is None and still.seconds(text) >= EXPIRY_SECONDS):
            (root / STOP).delete()
            found = "has ended without a word" if alive is False else f"has said nothing for {EXPIRY_SECONDS:.0f} s"
            raise LeaseError(
                f"nobody runs job {root.name} any more: {holder} {found}; `verydeep run` goes on with the job"
            )
        time.sleep(LOOK_SECONDS)


def _standing(store: Store) -> Iterator[str]:
    """A line for each stage. Raises CheckpointError or ClusterError."""
    for name, folder in store.noted_stages().items():
        finished = folder.finished()
        if finished is not None:
            yield f"  {name}: done, {count(len(finished.epochs), 'epoch')}"
        else:
            progress = folder.progress()
            yield f"  {name}: {place(len(progress.epochs), progress.step) or 'at its beginning'}"
