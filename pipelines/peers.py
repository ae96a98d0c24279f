"""What a user would otherwise feed a net with: Pillow, OpenCV or webdataset, and torch's DataLoader.

Each is an endless iterator of batches: float32 (n, 3, crop, crop), RGB, mean subtracted, divided by `pixel_std`, of the
same images as ours, rescaled to the same distribution of S, cropped and flipped at random. None shifts colours.
"""

import io
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batches = Generator[Any, None, None]


@dataclass(frozen=True)
class Task:
    """The first `images` rows of the data set at `place`; the folder `copies` has them as files and as tar shards."""

    place: str
    images: int
    scale: tuple[int, int]
    crop: int
    mean: tuple[float, float, float]
    pixel_std: float
    seed: int
    copies: Path

    @property
    def files(self) -> list[str]:
        return sorted(map(str, (self.copies / "files").iterdir()))

    @property
    def shards(self) -> list[str]:
        return sorted(map(str, (self.copies / "shards").iterdir()))


class Stream:
    """The work of a contender: a round is so many batches of its source as hold the task's images."""

    def __init__(self, source: Callable[..., Batches], task: Task, batch: int, **setting: Any) -> None:
        assert task.images % batch == 0, (task.images, batch)
        torch.set_num_threads(1)  # work is done by the contender's own threads
        torch.manual_seed(task.seed)
        self._task, self._steps = task, task.images // batch
        self._batches = source(task, batch, **setting)

    def round(self) -> int:
        return sum(len(next(self._batches)) for _ in range(self._steps))

    def facts(self) -> dict[str, Any]:
        """How many images; of tensors also their kinds, and each channel's mean and deviation in grey levels."""
        kinds: set[str] = set()
        moments, images = torch.zeros(2, 3, dtype=torch.float64), 0
        for _ in range(self._steps):
            batch = next(self._batches)
            images += len(batch)
            for image in batch if isinstance(batch, Tensor) else ():
                kinds.add(f"{image.dtype} {tuple(image.shape)}".removeprefix("torch."))
                moments += torch.stack([image.mean(dim=(1, 2)), image.square().mean(dim=(1, 2))])
        if not kinds:
            return {"images": images}
        mean, square = moments / images
        deviation = (square - mean.square()).sqrt() * self._task.pixel_std
        grey = mean * self._task.pixel_std + torch.tensor(self._task.mean)
        return {"images": images, "kinds": sorted(kinds), "mean": grey.tolist(), "deviation": deviation.tolist()}

    def close(self) -> None:
        self._batches.close()


@dataclass(frozen=True)
class View:
    """The size of the rescaled image, the corner of the crop in it, and whether it is flipped."""

    width: int
    height: int
    x: int
    y: int
    flip: bool


def random_view(task: Task, width: int, height: int) -> View:
    """For an image of this size; torch seeds `random` differently in each worker."""
    factor = random.randint(*task.scale) / min(width, height)
    w, h = round(width * factor), round(height * factor)
    return View(w, h, random.randint(0, w - task.crop), random.randint(0, h - task.crop), random.random() < 0.5)


def pil(task: Task, batch: int, workers: int, depth: int) -> Batches:
    return _loaded(Files(task.files, partial(pil_crop, task)), task, batch, workers, depth)


def pil_crop(task: Task, file: str | io.BytesIO) -> Tensor:
    """As torchvision's reference for ImageNet does it, with an isotropic rescale and a crop of fixed size."""
    with Image.open(file) as encoded:
        image = encoded.convert("RGB")
    view = random_view(task, *image.size)
    image = image.resize((view.width, view.height), Image.Resampling.BILINEAR)
    image = image.crop((view.x, view.y, view.x + task.crop, view.y + task.crop))
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32)
    return pixels.sub_(torch.tensor(task.mean).view(3, 1, 1)).div_(task.pixel_std)


# linear    the whole image is rescaled with cv2.INTER_LINEAR, which does not antialias
# area      the whole image is rescaled with cv2.INTER_AREA
# window    only the crop's window is rescaled (linear); its borders are rounded to whole pixels of the source
# reduced   the same after decoding to 1/2, 1/4 or 1/8 of the size where that is not below S
OPENCV_VARIANTS = ("window", "linear", "area", "reduced")


def opencv(task: Task, batch: int, workers: int, depth: int, variant: str) -> Batches:
    return _loaded(Files(task.files, partial(opencv_crop, task, variant)), task, batch, workers, depth)


def opencv_crop(task: Task, variant: str, file: str) -> Tensor:
    import cv2

    cv2.setNumThreads(0)  # the workers are the threads
    if variant == "reduced":
        with Image.open(file) as header:
            view = random_view(task, *header.size)
            reduction = min(header.size) // min(view.width, view.height)
    else:
        view, reduction = None, 1
    reductions = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    flag = next((reductions[r] for r in (8, 4, 2) if r <= reduction), cv2.IMREAD_COLOR)
    pixels = cv2.imread(file, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None, file
    height, width = pixels.shape[:2]
    view = view or random_view(task, width, height)
    if variant in ("linear", "area"):
        filter = cv2.INTER_LINEAR if variant == "linear" else cv2.INTER_AREA
        pixels = cv2.resize(pixels, (view.width, view.height), interpolation=filter)
        pixels = pixels[view.y : view.y + task.crop, view.x : view.x + task.crop]
    else:
        left, right = (round(x * width / view.width) for x in (view.x, view.x + task.crop))
        top, bottom = (round(y * height / view.height) for y in (view.y, view.y + task.crop))
        pixels = cv2.resize(pixels[top:bottom, left:right], (task.crop, task.crop), interpolation=cv2.INTER_LINEAR)
    if view.flip:
        pixels = cv2.flip(pixels, 1)
    tensor = cv2.dnn.blobFromImage(pixels, 1.0 / task.pixel_std, mean=task.mean, swapRB=True)
    return torch.from_numpy(tensor[0])


def webdataset(task: Task, batch: int, workers: int, depth: int) -> Batches:
    import webdataset as wds

    shards = task.shards
    samples = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).repeat().shuffle(100, initial=100)
    crops = samples.to_tuple("jpg").map(partial(_webdataset_crop, task))
    yield from DataLoader(crops, batch_size=batch, num_workers=workers, prefetch_factor=depth)


def _webdataset_crop(task: Task, sample: tuple[bytes]) -> Tensor:
    return pil_crop(task, io.BytesIO(sample[0]))


@dataclass(frozen=True)
class Files(Dataset[Tensor]):
    paths: list[str]
    load: Callable[[str], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.load(self.paths[index])


def _loaded(files: Files, task: Task, batch: int, workers: int, depth: int) -> Batches:
    order = _shuffled_batches(task.images, batch)
    yield from DataLoader(files, batch_sampler=order, num_workers=workers, prefetch_factor=depth)


def _shuffled_batches(images: int, batch: int) -> Iterator[list[int]]:
    """Every image once in each epoch, without end."""
    for _ in repeat(None):
        yield from torch.randperm(images).view(-1, batch).tolist()
