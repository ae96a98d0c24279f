"""`verydeep sync`: what MLflow could not be told while a job ran."""

import argparse
from collections.abc import Iterator

from jobs.store import JOB, RESULTS, SPOOL
from pipelines.errors import ClusterError, SettingsError
from pipelines.location import Location, public

_KINDS = ("runs", "evaluations")  # folders of a storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Delivers to MLflow what it was not there to be told while jobs ran; nothing is told twice. Exit status 0: all "
        "has been delivered; 1: something could not be, and is kept."
    )
    parser.add_argument("what", metavar="JOB", help="a job file, the folder of a run, or a storage with all its runs")
    parser.add_argument("--uri", metavar="URI", help="of another MLflow than the one that was to be told")
    parser.set_defaults(verb=_sync)


def _sync(options: argparse.Namespace) -> int:
    """Raises VerydeepError."""
    place = _place(options.what)
    from cluster import sync  # slow imports
    from cluster.track import check_uri
    from jobs import lease

    if options.uri is not None:
        check_uri(options.uri)
    calls = runs = kept = 0
    busy = False
    for spool in _spools(place):
        if not spool.files():
            continue
        try:
            if (holder := lease.look(spool.parent)) is not None:
                raise ClusterError(f"{spool.parent}: is being run by {holder}, and delivers by itself")
            synced = sync.deliver(spool, options.uri, print)
        except ClusterError as error:
            print(error)
            busy = True
            continue
        calls, runs, kept = calls + synced.calls, runs + synced.runs, kept + synced.kept
    if calls or kept:
        left = f"; {kept} {'is' if kept == 1 else 'are'} kept" if kept else ""
        print(f"{calls} call{'s' * (calls != 1)} of {runs} run{'s' * (runs != 1)} delivered{left}")
    elif not busy:
        print(f"{public(str(place))}: MLflow has been told everything")
    return 1 if kept or busy else 0


def _place(what: str) -> Location:
    if what.endswith((".yaml", ".yml")):
        from jobs import stored

        return stored.store_of(what).root
    place = Location.of(what)
    if not place.exists():
        raise SettingsError(f"{what}: there is no such folder")
    if place.name != SPOOL and not ({SPOOL, *_KINDS} & place.folders().keys() or {JOB, RESULTS} & place.files().keys()):
        raise SettingsError(f"{what}: is neither the folder of a run nor a storage")
    return place


def _spools(place: Location) -> Iterator[Location]:
    """The folder itself, and wherever below it spools of jobs and of tests are."""
    yield place if place.name == SPOOL else place / SPOOL
    for kind in _KINDS:
        for name in (place / kind).folders():
            yield place / kind / name / SPOOL
