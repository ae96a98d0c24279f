"""What a stage can be told. Each setting, its unit, default and meaning is written here and nowhere else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cluster import layers
from cluster.table import CONFIGURATIONS, STRIDE
from cluster.views import Precision, TestMode

Net = Literal["A", "A-LRN", "B", "C", "D", "E"]
assert set(Net.__args__) == set(CONFIGURATIONS)  # type: ignore[attr-defined]


class Settings(BaseModel):
    """Frozen, complete, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Words:
    """What a setting takes, for people; of settings whose type does not say it by itself."""

    text: str


_Count = Annotated[int, Field(ge=1)]


def _range(low: str, high: str, expected: Words, of: str = "") -> BeforeValidator:
    """One whole number, or the least and the most of a range; as a range in either case."""

    def read(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
            if value[0] > value[1]:
                raise ValueError(f"the {low}{of} ({value[0]}) is above the {high} ({value[1]})")
            return tuple(value)
        if type(value) is int:
            return (value, value)
        raise ValueError(f"expected {expected.text}")

    return BeforeValidator(read, json_schema_input_type=_Count | Annotated[list[_Count], Len(2, 2)])


_PIXELS = Words("a number of pixels, or [smallest, largest]")
Scale = Annotated[tuple[_Count, _Count], _range("smallest", "largest", _PIXELS, " S"), _PIXELS]


class Plateau(Settings):
    """When the learning rate falls. The paper divides by 10, three times; patience and gain are assumptions."""

    patience: int = Field(5, ge=1, description="epochs without a gain after which the rate is divided")
    min_gain: float = Field(0.001, ge=0, description="the rise of validation accuracy that counts, as a share of 1")
    factor: float = Field(10.0, gt=1, description="what the rate is divided by")
    drops: int = Field(3, ge=0, description="divisions; the plateau after the last one ends training")


class StepSchedule(Settings):
    """The learning rate falls at fixed epochs."""

    every: int = Field(30, ge=1, description="epochs after which the rate is divided, again and again")
    factor: float = Field(10.0, gt=1, description="what the rate is divided by")


class Cosine(Settings):
    """The learning rate falls at every step, along half a cosine (Loshchilov and Hutter 2017, without restarts)."""

    floor: float = Field(0.0, ge=0, description="the rate that it comes to after the last epoch")


Schedule = Literal["plateau", "step", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


class Init(Settings):
    """Where the first weights come from."""

    source: str | None = Field(
        None,
        alias="from",
        description="the net that the layers that fit come from: a stage, or a file: a checkpoint, what `verydeep "
        "export` wrote, or a VGG of torchvision's (.pth or .safetensors). Weights of conv1_1 are scaled to this "
        "stage's pixel_std; the mean that is subtracted is the data's own",
    )
    left_out: list[str] = Field(
        default_factory=list,
        alias="except",
        description="layers or groups (named as in freeze) that are not copied but drawn at random; without fc3 the "
        "classes may be others",
    )
    random: Literal["normal", "glorot", "kaiming", "torchvision"] = Field(
        "normal",
        description="how the other layers are drawn; torchvision: convolutions as kaiming, but by the fan out, "
        "fully-connected layers normal",
    )
    std: float = Field(0.01, gt=0, description="standard deviation of `normal`, and of torchvision's normal layers")


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
    init: Init = Field(default_factory=Init, description="where the first weights come from")
    batch: int = Field(256, ge=1, description="images of a step, over all workers")
    epochs: int = Field(74, ge=1, description="passes over the training set, at most")
    learning_rate: float = Field(0.01, gt=0, description="the first learning rate, or the one that warm-up leads to")
    schedule: Schedule = Field("plateau", description="when the learning rate falls; its knobs are below its name")
    plateau: Plateau | None = Field(None, description="of the schedule `plateau`")
    step: StepSchedule | None = Field(None, description="of the schedule `step`")
    cosine: Cosine | None = Field(None, description="of the schedule `cosine`")
    warmup_epochs: float = Field(
        0.0,
        ge=0,
        description="epochs in which the rate rises linearly, step by step, to learning_rate; the cosine falls over "
        "those that remain, and to a plateau warm-up's epochs do not count",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is taken again")
    nesterov: bool = Field(False, description="look ahead along the momentum (Sutskever et al. 2013)")
    weight_decay: float = Field(5e-4, ge=0, description="of weights, and of biases if they decay")
    decay_biases: bool = Field(True, description="weight decay of biases and of scale and shift of normalisations, too")
    freeze: list[str] = Field(
        default_factory=list,
        description="layers that keep the weights they start with: conv1_1, fc1, or the groups block1 to block5, "
        "features (all convolutions) and classifier (all fully-connected layers)",
    )
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="what the learning rate is multiplied by in a layer or group (named as in freeze); a layer goes by "
        "its narrowest name",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="the largest norm of the whole gradient; a larger one is scaled down to it"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the training target that is spread evenly over all classes"
    )
    average_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the running average of weights that is left after a step, 0.9999 say; validation, later "
        "stages and tests take the average; 0: none",
    )
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
        "devices of one kind: gradients of virtual shards, added in one fixed order, or made of their factors in one "
        "product (exchange), of images decoded in one fixed way. A worker then computes with one thread, unless "
        "cpus_per_worker is a number, since the threads change the rounding, too",
    )
    exchange: Literal["auto", "ddp", "factors"] = Field(
        "auto",
        description="how workers exchange the gradients of fully-connected layers. ddp: they are summed, as those of "
        "convolutions always; factors: the layer's inputs and its outputs' gradients are gathered, and every worker "
        "multiplies them, which gives the same but for rounding; auto: for each layer what sends fewer bytes, and ddp "
        "where the workers' devices are not alike",
    )
    exchange_precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="in which sums over workers are sent and added, of fast training; factors have the precision that "
        "is computed in",
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
    after: list[str] = Field(
        default_factory=list,
        description="stages that have to be done before this one begins, beside the one that it starts from; of no "
        "influence on its result",
    )

    @model_validator(mode="before")
    @classmethod
    def _knobs(cls, content: Any) -> Any:
        """Gives the chosen schedule its defaults."""
        chosen = content.get("schedule", "plateau") if isinstance(content, dict) else None
        if isinstance(chosen, str) and chosen in SCHEDULES and content.get(chosen) is None:
            return {**content, chosen: {}}
        return content

    @model_validator(mode="after")
    def _fits(self) -> "StageSettings":
        """Tells of all that does not go together, a line each, which begins with the setting at fault."""
        if problems := [*self._sizes(), *self._rates(), *self._layers()]:
            raise ValueError("\n".join(problems))
        return self

    def _sizes(self) -> Iterator[str]:
        if self.input_size % STRIDE:
            yield f"input_size: {self.input_size} is not a multiple of {STRIDE}"
        if self.scale[0] < self.input_size:
            yield f"scale: S = {self.scale[0]} is smaller than the crop, input_size = {self.input_size}"
        if self.validation_scale is not None and self.validation_scale < self.input_size:
            yield (
                f"validation_scale: Q = {self.validation_scale} is smaller than the crop, "
                f"input_size = {self.input_size}"
            )
        if not _power_of_two(self.virtual_shards):
            yield f"virtual_shards: {self.virtual_shards} is not a power of two"
        if self.reproducible == "exact" and self.exchange_precision != "float32":
            yield "exchange_precision: sums of exact training are float32's; it does not go with reproducible: exact"
        if self.sharded and self.micro_batch != "auto":
            yield (
                "micro_batch: with reproducible: exact or batch_norm, virtual shards are what is computed at a time; "
                "for smaller ones raise virtual_shards"
            )

    def _rates(self) -> Iterator[str]:
        for name in SCHEDULES:
            if name != self.schedule and getattr(self, name) is not None:
                ways = f"leave it out ({name}: null), or choose schedule: {name}"
                yield f"{name}: does not apply, since schedule is {self.schedule}; {ways}"
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            yield f"warmup_epochs: {self.warmup_epochs:g} are not fewer than epochs = {self.epochs}"
        if self.step is not None and self.warmup_epochs > self.step.every:
            yield f"warmup_epochs: the rate would fall (step.every = {self.step.every}) before it has risen"
        if self.cosine is not None and self.cosine.floor > self.learning_rate:
            yield f"cosine.floor: {self.cosine.floor:g} is not below learning_rate = {self.learning_rate:g}"
        if self.nesterov and not self.momentum:
            yield "nesterov: does not go without momentum"

    def _layers(self) -> Iterator[str]:
        names = {"freeze": self.freeze, "learning_rates": self.learning_rates, "init.except": self.init.left_out}
        for key, chosen in names.items():
            if (problem := layers.unknown(self.net, chosen)) is not None:
                yield f"{key}: {problem}"
                return
        if self.left_out and self.init.source is None:
            yield "init.except: does not go without init: {from: ...}"
        if self.left_out == set(layers.of(self.net)):
            yield "init.except: these are all layers, so that none is copied"
        if self.frozen == set(layers.of(self.net)):
            yield "freeze: these are all layers, so that none is trained"
        for name in self.learning_rates:
            if layers.chosen(self.net, [name]) <= self.frozen:
                yield f"learning_rates: {name} is frozen, so it does not go with a learning rate"
        if self.frozen and self.init.source is None:
            yield "freeze: these layers would keep random weights; it does not go without init: {from: ...}"

    @property
    def frozen(self) -> frozenset[str]:
        """The layers that are not trained."""
        return layers.chosen(self.net, self.freeze)

    @property
    def left_out(self) -> frozenset[str]:
        """The layers that do not come from the net that this one starts from."""
        return layers.chosen(self.net, self.init.left_out)

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


_WORKERS = Words("a number of workers, or [least, most]")
Workers = Annotated[tuple[_Count, _Count], _range("least", "most", _WORKERS), _WORKERS]


class ClusterSettings(Settings):
    """What the job takes of the cluster, and what it does when workers fail: no part of what a stage comes to."""

    workers: Workers = Field(
        (1, 1),
        description="training processes, each with its share of the batch: so many, or [least, most], between which "
        "training shrinks and grows with the cluster",
    )
    gpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=0, le=1)] = Field(
        "auto", description="auto: 1 if the cluster has one for each"
    )
    cpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="threads of a worker; auto: all that the cluster has, shared evenly"
    )
    side_by_side: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="stages and tests at a time, at most, where the cluster has room for them; auto: as many as find "
        "room. Where CPUs are shared out by themselves (cpus_per_worker: auto) a number divides them among so many; "
        "with auto a stage without GPUs takes all",
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


class CheckpointSettings(Settings):
    """When a stage saves what it takes to go on, and what of it is kept. Of no influence on results."""

    every_minutes: float = Field(10.0, gt=0, description="minutes from one to the next inside an epoch, beside its end")
    keep: int = Field(2, ge=1, description="the newest that are kept, beside that of the best epoch")


_MODES = Words("dense, multi-crop, both, or a list of several, each once")
_SCALES = Words("single, several, or a list of Q in pixels, such as [256, 384, 512]")


def _listed(value: Any) -> Any:
    """A mode, or several, each once."""
    modes = [value] if isinstance(value, str) else value
    if isinstance(modes, list) and (not modes or len(set(map(str, modes))) < len(modes)):
        raise ValueError(f"expected {_MODES.text}")
    return modes


def _scales(value: Any) -> Any:
    numbers = isinstance(value, list) and value and all(type(q) is int and q >= 1 for q in value)
    if value not in ("single", "several") and not numbers:
        raise ValueError(f"expected {_SCALES.text}")
    return value


_Modes = TestMode | Annotated[list[TestMode], Len(1)]


class EvaluationSettings(Settings):
    """One of the paper's tests (section 3.2)."""

    models: list[str] = Field(min_length=1, description="stages whose nets are tested, or files of nets")
    mode: Annotated[list[TestMode], BeforeValidator(_listed, json_schema_input_type=_Modes), _MODES] = Field(
        ["dense"],
        description="one or several. dense: the net over the whole image; multi-crop: the mean over 5 x 5 crops and "
        "their mirror images; both: the mean of these two",
    )
    scales: Annotated[
        list[int] | Literal["single", "several"],
        BeforeValidator(_scales, json_schema_input_type=Annotated[list[_Count], Len(1)] | Literal["single", "several"]),
        _SCALES,
    ] = Field(
        "single",
        description="Q, several are averaged. single: the net's own S, or the middle of its range; several: S - 32, S "
        "and S + 32 (at other input sizes a seventh of these), or the range's ends and middle",
    )
    mirror: bool | None = Field(None, description="average with the mirror image; default: as in training (flip)")
    precision: Precision = Field(
        "float32",
        description="of the net's products on GPUs: float32, or faster tf32 (factors of 10 binary digits) or bf16 (of "
        "7, and so are layers' results); averages and soft-max stay float32",
    )
    fuse: bool = Field(False, description="test the mean of the models' posteriors, instead of each model by itself")

    @model_validator(mode="after")
    def _fits(self) -> "EvaluationSettings":
        if self.fuse and len(set(self.models)) < 2:
            raise ValueError("fuse: takes two models or more")
        return self
