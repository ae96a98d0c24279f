"""`python -m jobs JOB.yaml ...` is `verydeep run JOB.yaml ...`: the first line of every job file calls it."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
