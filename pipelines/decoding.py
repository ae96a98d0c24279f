"""How a graph decodes, as a value: of influence on its speed, and on pixels by no more than decoders differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """The default decodes the same pixels in any batch, and is all that there is on a CPU but `regions` and `depth`.

    hardware  share of a batch's images, 0 to 1, that the JPEG engines of a GPU decode, which are not part of what a net
              computes with. They round in a way of their own, and which images they get depends on the batch
    regions   decode only the window of an image that its crop is made of; otherwise all of it, which engines may prefer
    smooth    interpolate colours, of which most JPEGs have fewer, as decoders on CPUs do; GPUs save a little without
    depth     batches that are made ahead
    threads   of the CPU; None: all that the worker has
    """

    hardware: float = 0.0
    regions: bool = True
    smooth: bool = True
    depth: int = 2
    threads: int | None = None

    def __str__(self) -> str:
        what = "regions" if self.regions else "whole images"
        colours = "" if self.smooth else ", coarse colours"
        threads = "all threads" if self.threads is None else f"{self.threads} threads"
        return f"{self.hardware:.0%} by JPEG engines, {what}{colours}, {self.depth} batches ahead, {threads}"
