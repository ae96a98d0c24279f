"""The one exception tree.

    VerydeepError          what a user can mend; its text is one clear message, printed without a traceback
    ├── SettingsError      a job file or a setting that cannot be
    ├── DataError          a data set that is missing, empty or broken
    ├── CheckpointError    a checkpoint that cannot be read, or is of another net
    │   └── DamagedError   one that is not whole
    ├── ClusterError       the cluster cannot give what the job asks for
    ├── LeaseError         a job that another driver runs, or nobody
    ├── TrainingError      training that cannot go on, such as a loss that is not finite
    │   └── RoomError      the cluster has had no room for it
    └── BenchError         contenders that cannot be compared

Everything that is found before work starts ends the command with status 2, what stops it later with 1.
"""


def first_line(error: BaseException) -> str:
    """What a foreign error says, for one clear line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class VerydeepError(ValueError):
    exit_status = 2


class SettingsError(VerydeepError):
    pass


class DataError(VerydeepError):
    pass


class CheckpointError(VerydeepError):
    pass


class DamagedError(CheckpointError):
    pass


class ClusterError(VerydeepError):
    pass


class TrainingError(VerydeepError):
    exit_status = 1


class LeaseError(VerydeepError):
    exit_status = 1


class RoomError(TrainingError):
    pass


class BenchError(VerydeepError):
    exit_status = 1
