"""A driver that holds a job's lease and does nothing else, as a process: `python -m tests.jobs.driver FOLDER EXPIRY`.

It prints a line when it has the lease, and one of why it ends.
"""

import subprocess
import sys
import time
from pathlib import Path

from cluster.interrupt import Stop
from jobs import lease
from jobs.holder import Holder
from pipelines.errors import LeaseError
from pipelines.location import Location

ROOT = Path(__file__).parent.parent.parent


def started(folder: Path, expiry_seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.jobs.driver", str(folder), str(expiry_seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def heard(driver: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert driver.stdout is not None
    return driver.stdout.readline().strip()


def main(folder: str, expiry: str) -> None:
    lease.EXPIRY_SECONDS = float(expiry)
    lease.RENEWAL_SECONDS, lease.LOOK_SECONDS = lease.EXPIRY_SECONDS / 8, lease.EXPIRY_SECONDS / 40
    stop = Stop()
    try:
        with lease.held(Location.of(folder), stop, Holder.here()):
            print("held", flush=True)
            while not stop.asked:
                time.sleep(0.01)
        print(f"at once: {stop.why}" if stop.at_once else stop.why, flush=True)
    except LeaseError as error:
        print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
