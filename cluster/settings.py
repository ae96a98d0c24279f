"""What a stage can be told. Each setting, its unit, default and meaning is written here and nowhere else."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cluster.vgg import CONFIGURATIONS, STRIDE

Net = Literal["A", "A-LRN", "B", "C", "D", "E"]
assert set(Net.__args__) == set(CONFIGURATIONS)  # type: ignore[attr-defined]


class Settings(BaseModel):
    """Frozen, complete, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False)


def _scale(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        low, high = value
        if low > high:
            raise ValueError(f"the smallest S ({low}) is above the largest ({high})")
        return (low, high)
    if type(value) is int:
        return (value, value)
    raise ValueError("expected a number of pixels, or [smallest, largest]")


Scale = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_scale)]


class Plateau(Settings):
    """When the learning rate falls. The paper divides by 10, three times; patience and gain are assumptions."""

    patience: int = Field(5, ge=1, description="epochs without a gain after which the rate is divided")
    min_gain: float = Field(0.001, ge=0, description="the rise of validation accuracy that counts, as a share of 1")
    factor: float = Field(10.0, gt=1, description="what the rate is divided by")
    drops: int = Field(3, ge=0, description="divisions; the plateau after the last one ends training")


class Init(Settings):
    """Where the first weights come from."""

    source: str | None = Field(None, alias="from", description="the stage whose net the layers that fit come from")
    random: Literal["normal", "glorot", "kaiming"] = Field("normal", description="how the other layers are drawn")
    std: float = Field(0.01, gt=0, description="standard deviation of `normal`")


class StageSettings(Settings):
    """One stage of training; the defaults are the paper's recipe (section 3.1)."""

    net: Net = Field(description="configuration of table 1")
    scale: Scale = Field(description="S, the shorter side after the rescale, in pixels: fixed, or [smallest, largest]")
    input_size: int = Field(224, ge=STRIDE, description="side of the crops in pixels, a multiple of 32")
    width: float = Field(1.0, gt=0, description="multiplies the widths of all hidden layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of FC-1's and FC-2's outputs set to 0")
    batch_norm: bool = Field(
        False,
        description="batch norm behind each convolution (torchvision's vgg*_bn); its statistics are those of virtual "
        "shards, so that they do not depend on the number of workers",
    )
    init: Init = Field(default_factory=Init)
    batch: int = Field(256, ge=1, description="images of a step, over all workers")
    epochs: int = Field(74, ge=1, description="passes over the training set, at most")
    learning_rate: float = Field(0.01, gt=0, description="the first learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is taken again")
    weight_decay: float = Field(5e-4, ge=0, description="of weights and biases")
    plateau: Plateau = Field(default_factory=Plateau)
    validation_scale: int | None = Field(
        None,
        ge=1,
        description="Q of the middle crops that validation during training looks at; default: S, or its mean",
    )
    flip: bool = Field(True, description="mirror half of the training images")
    colour_shift: float = Field(0.1, ge=0, description="deviation of the RGB shift's normal variates; 0: none")
    pixel_std: float = Field(1.0, gt=0, description="pixels are divided by it after the mean is subtracted")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="of forward and backward: float32, or bfloat16 where autocast finds it safe; weights, gradients "
        "and loss stay float32; auto: bf16 on GPUs that have it",
    )
    reproducible: Literal["fast", "exact"] = Field(
        "fast",
        description="fast: another number of workers gives the same net but for rounding; exact: the same bits, on "
        "devices of one kind: gradients of virtual shards, added in one fixed order. A worker then computes with one "
        "thread, unless cpus_per_worker is a number, since the threads change the rounding, too",
    )
    virtual_shards: int = Field(
        8,
        ge=1,
        description="parts of a batch, a power of two, that exact and batch_norm compute one by one; the number of "
        "workers is a power of two up to it",
    )
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="images that a worker takes through the net at a time; auto: its share of the batch, halved until "
        "it fits the memory. Virtual shards are taken whole",
    )
    compile: bool = Field(False, description="torch.compile the net; the first steps take a minute or more")
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of an epoch's images that may turn out not to be decodable (a plain picture stands in for "
        "each); more end the run",
    )
    deliver: Literal["best", "last"] = Field(
        "best", description="the epoch whose net later stages and tests take: best validation accuracy, or last"
    )
    seed: int = Field(0, ge=0, lt=2**64, description="of weights, order, augmentation and dropout")

    @model_validator(mode="after")
    def _fits(self) -> "StageSettings":
        if self.input_size % STRIDE:
            raise ValueError(f"input_size: {self.input_size} is not a multiple of {STRIDE}")
        if self.scale[0] < self.input_size:
            raise ValueError(f"scale: S = {self.scale[0]} is smaller than the crop, input_size = {self.input_size}")
        if self.validation_scale is not None and self.validation_scale < self.input_size:
            raise ValueError(
                f"validation_scale: Q = {self.validation_scale} is smaller than the crop, "
                f"input_size = {self.input_size}"
            )
        if not _power_of_two(self.virtual_shards):
            raise ValueError(f"virtual_shards: {self.virtual_shards} is not a power of two")
        if self.sharded and self.micro_batch != "auto":
            raise ValueError(
                "micro_batch: with reproducible: exact or batch_norm, virtual shards are what is computed at a time; "
                "for smaller ones raise virtual_shards"
            )
        return self

    @property
    def sharded(self) -> bool:
        """Whether batches are computed in virtual shards, the same ones for any number of workers."""
        return self.reproducible == "exact" or self.batch_norm

    def refusal(self, workers: int) -> str | None:
        """Why so many workers cannot train this, or None if they can."""
        if not self.sharded or (_power_of_two(workers) and workers <= self.virtual_shards):
            return None
        cause = "exact training" if self.reproducible == "exact" else "batch norm"
        return (
            f"{cause} takes a power of two of workers, at most virtual_shards ({self.virtual_shards}); "
            f"{workers} cannot share them evenly"
        )

    @property
    def test_scale(self) -> int:
        """Q = S, or the middle of S's range (paper, section 4.1)."""
        return self.validation_scale or (self.scale[0] + self.scale[1]) // 2


def _power_of_two(n: int) -> bool:
    return n.bit_count() == 1


class ClusterSettings(Settings):
    """What the job takes of the cluster: of influence on time, and on results only through dropout and rounding."""

    workers: int = Field(1, ge=1, description="training processes, each with its share of the batch")
    gpus_per_worker: Literal["auto", 0, 1] = Field("auto", description="auto: 1 if the cluster has one for each")
    cpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="threads of a worker; auto: all that the cluster has, shared evenly"
    )
    max_failures: int = Field(3, ge=0, description="crashed workers after which a stage is given up")


class EvaluationSettings(Settings):
    """One of the paper's tests (section 3.2)."""

    models: list[str] = Field(min_length=1, description="stages whose nets are tested")
    mode: Literal["dense"] = Field("dense", description="dense: the net over the whole image")
    scales: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="Q, several are averaged; default: the net's own S, or its mean"
    )
    mirror: bool | None = Field(None, description="average with the mirror image; default: as in training (flip)")
