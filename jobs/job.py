"""What a job file can say: the models of all its parts, beside those of `cluster.settings`."""

from typing import Annotated, Literal

from pydantic import Field

from cluster.settings import CheckpointSettings, ClusterSettings, EvaluationSettings, Settings, StageSettings, Words
from jobs import graph
from pipelines.location import Location

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_LONGEST_NAME = 100  # files are named after stages and tests, with a key and more behind

Name = Annotated[
    str,
    Field(pattern=f"^{NAME}$", max_length=_LONGEST_NAME),
    Words("at most 100 letters, digits, points, hyphens and underscores, the first a letter or digit"),
]


class Data(Settings):
    """Two prepared data sets: folders, or URIs that pyarrow knows (s3://, gs://)."""

    train: str = Field(min_length=1, description="the training set")
    val: str = Field(min_length=1, description="the validation set, of the same classes")


class Job(Settings):
    """A chain of stages and their tests. In a job file `train` has settings that every stage starts from.

    `train` and each stage may also name a `recipe` (`jobs.recipes`), whose settings come before theirs.
    """

    name: Name = Field(description="names the run's folder and the MLflow experiment")
    data: Data | Literal["digits"] = Field(description="data sets, or `digits` for the ones that come with the program")
    storage: str = Field(
        "~/verydeep",
        min_length=1,
        description="place of all results: a folder that all nodes share, or a URI that pyarrow knows (s3://, gs://)",
    )
    cluster: ClusterSettings = Field(
        default_factory=ClusterSettings, description="what the job takes of the cluster, and what it does at failures"
    )
    checkpoints: CheckpointSettings = Field(
        default_factory=CheckpointSettings, description="when a stage saves what it takes to go on"
    )
    stages: dict[Name, StageSettings] = Field(min_length=1, description="the stages of training, by their names")
    evaluations: dict[Name, EvaluationSettings] = Field(
        default_factory=dict, description="the paper's tests of nets, by their names"
    )

    @property
    def root(self) -> Location:
        """Raises DataError: a URI of nothing that pyarrow knows."""
        return Location.of(self.storage)


def needs(job: Job) -> graph.Needs:
    """The stages that each stage waits for."""
    return {
        name: [other for other in dict.fromkeys([stage.init.source, *stage.after]) if other in job.stages]
        for name, stage in job.stages.items()
    }


def is_file(source: str) -> bool:
    """Whether `init.from` names a file or a URI, and not a stage."""
    return "/" in source or source.endswith((".safetensors", ".pth", ".pt"))
