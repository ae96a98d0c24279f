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
        return self

    @property
    def test_scale(self) -> int:
        """Q = S, or the middle of S's range (paper, section 4.1)."""
        return self.validation_scale or (self.scale[0] + self.scale[1]) // 2


def _workers(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        least, most = value
        if least > most:
            raise ValueError(f"the least ({least}) is above the most ({most})")
        return (least, most)
    if type(value) is int:
        return (value, value)
    raise ValueError("expected a number of workers, or [least, most]")


Workers = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_workers)]


class ClusterSettings(Settings):
    """What the job takes of the cluster, and what it does when workers fail: no part of what a stage comes to."""

    workers: Workers = Field(
        (1, 1),
        description="training processes, each with its share of the batch: so many, or [least, most], between which "
        "training shrinks and grows with the cluster",
    )
    gpus_per_worker: Literal["auto", 0, 1] = Field("auto", description="auto: 1 if the cluster has one for each")
    cpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="threads of a worker; auto: all that the cluster has, shared evenly"
    )
    max_failures: int = Field(
        20,
        ge=0,
        description="crashes after which a stage is given up; three in a row of the same cause at the same step end "
        "it before",
    )
    collective_timeout_seconds: int = Field(
        60, ge=1, description="a worker that does not answer the others for so long is lost; work goes on without it"
    )
    stall_minutes: float = Field(
        10.0,
        gt=0,
        description="a worker whose step takes longer hangs and is ended, unless five times its longest step so far "
        "is more; raise it where the first step takes minutes, as with a deep net on few cores",
    )
    wait_minutes: float = Field(
        30.0, gt=0, description="how long a stage waits for room for its least workers before it is given up"
    )


class EvaluationSettings(Settings):
    """One of the paper's tests (section 3.2)."""

    models: list[str] = Field(min_length=1, description="stages whose nets are tested")
    mode: Literal["dense"] = Field("dense", description="dense: the net over the whole image")
    scales: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="Q, several are averaged; default: the net's own S, or its mean"
    )
    mirror: bool | None = Field(None, description="average with the mirror image; default: as in training (flip)")
