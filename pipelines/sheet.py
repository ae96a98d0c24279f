"""Drawing a contact sheet: a header, then cells in rows, each a picture above its caption. Lengths are in pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from pipelines import audit
from pipelines.show import Box, Cell, Origin

_MARGIN, _GAP, _PAD, _LINE = 20, 20, 4, 18
_BORDER = 6  # of a cell's ground around what is in it
_TEXT = 13
_CELL_WIDTH = 224  # smaller crops are magnified to about this
_STROKE = 2
_PAPER, _GROUND, _BLANK, _INK, _ALARM = "#ffffff", "#f0f0f0", "#c8c8c8", "#1a1a1a", "#b00020"
DECODED, CROP = (10, 132, 255), (255, 149, 0)  # colours of the frames

Measure = Callable[[str], float]  # the width of a text
Lines = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """`side`: of a drawn crop, `zoom` times its own; `cell`: width and height, without the gap to the next cell."""

    zoom: int
    side: int
    columns: int
    rows: int
    cell: tuple[int, int]
    header: Lines
    captions: tuple[Lines, ...]
    top: int  # where cells begin

    @property
    def size(self) -> tuple[int, int]:
        x, y = self.place(self.columns - 1)[0], self.place(self.columns * self.rows - 1)[1]
        return x + self.cell[0] + _MARGIN, y + self.cell[1] + _MARGIN

    def place(self, i: int) -> tuple[int, int]:
        """x and y of cell i's upper left corner."""
        row, column = divmod(i, self.columns)
        return _MARGIN + column * (self.cell[0] + _GAP), self.top + row * (self.cell[1] + _GAP)

    def crop_place(self, i: int, beside: bool) -> tuple[int, int]:
        """x and y of its crop: at the left, or `beside` the image that it comes from."""
        x, y = self.place(i)
        return x + beside * (self.side + _PAD), y


def layout(cells: Sequence[Cell], columns: int, header: Sequence[str], measure: Measure) -> Layout:
    """`header`: parts that stand side by side as far as there is room. Fewer cells than columns make fewer columns."""
    crop, pairs = len(cells[0].pixels), cells[0].origin is not None
    columns = min(columns, len(cells))
    zoom = max(1, round(_CELL_WIDTH / crop))
    side = crop * zoom
    width = max(2 * side + _PAD if pairs else side, _CELL_WIDTH)
    captions = tuple(_caption(cell, width, measure) for cell in cells)
    magnified = [f"magnified {zoom} times"] * (zoom > 1)
    lines = wrapped([*header, *magnified], "  ·  ", columns * (width + _GAP) - _GAP, measure)
    height = side + _PAD + max(map(len, captions)) * _LINE
    top = _MARGIN + (len(lines) + pairs) * _LINE + _GAP
    return Layout(zoom, side, columns, -(-len(cells) // columns), (width, height), lines, captions, top)


def shortened(text: str, width: float, measure: Measure) -> str:
    """`text`, or as much of its beginning and end as has room, around an ellipsis."""
    if measure(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
        if measure(short) <= width:
            return short
    return "…"


def wrapped(parts: Sequence[str], separator: str, width: float, measure: Measure) -> Lines:
    """As many parts in each line as have room; a part that is longer than a line is shortened."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{separator}{part}" if lines else ""
        if lines and measure(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(part, width, measure))
    return tuple(lines)


def draw(cells: Sequence[Cell], columns: int, header: Sequence[str]) -> Image.Image:
    face = font()
    plan = layout(cells, columns, header, face.getlength)
    sheet = Image.new("RGB", plan.size, _PAPER)
    pen = ImageDraw.Draw(sheet)

    def write(x: int, y: int, lines: Lines, ink: str = _INK) -> None:
        for k, line in enumerate(lines):
            pen.text((x, y + k * _LINE), line, ink, face)

    write(_MARGIN, _MARGIN, plan.header)
    if cells[0].origin is not None:
        _legend(pen, plan, write)
    for i, cell in enumerate(cells):
        x, y = plan.place(i)
        pen.rectangle((x - _BORDER, y - _BORDER, x + plan.cell[0] + _BORDER, y + plan.cell[1] + _BORDER), _GROUND)
        if cell.origin is not None:
            sheet.paste(framed(cell.origin, plan.side), (x, y))
        crop = Image.fromarray(cell.pixels).resize((plan.side, plan.side), Image.Resampling.NEAREST)
        sheet.paste(crop, plan.crop_place(i, cell.origin is not None))
        write(x, y + plan.side + _PAD, plan.captions[i], _ALARM if cell.reason else _INK)
    return sheet


def font() -> ImageFont.FreeTypeFont:
    """Of Latin, Greek and Cyrillic letters; Pillow's own knows ASCII alone."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", _TEXT)


def framed(origin: Origin, side: int) -> Image.Image:
    """The whole image in a square of `side`, in its upper left corner; the decoded part framed from outside, the
    crop's place from inside."""
    room = side - 2 * _STROKE
    scale = room / max(origin.width, origin.height)
    size = max(1, round(origin.width * scale)), max(1, round(origin.height * scale))
    square = Image.new("RGB", (side, side), _GROUND)
    square.paste(_picture(origin.encoded, size), (_STROKE, _STROKE))
    pen = ImageDraw.Draw(square)
    left, top, right, bottom = _scaled(origin.decoded, origin, size)
    outside = (left - _STROKE, top - _STROKE, right + _STROKE - 1, bottom + _STROKE - 1)
    pen.rectangle(outside, outline=DECODED, width=_STROKE)
    left, top, right, bottom = _scaled(origin.crop, origin, size)
    pen.rectangle((left, top, right - 1, bottom - 1), outline=CROP, width=_STROKE)
    return square


def _scaled(box: Box, origin: Origin, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of the image as whole pixels of `framed`, those that it touches; right and bottom excluded."""
    x, y = size[0] / origin.width, size[1] / origin.height
    left, top, right, bottom = box
    whole = floor(left * x), floor(top * y), ceil(right * x), ceil(bottom * y)
    return whole[0] + _STROKE, whole[1] + _STROKE, whole[2] + _STROKE, whole[3] + _STROKE


def _picture(encoded: bytes, size: tuple[int, int]) -> Image.Image:
    """The image in that size, or a blank one if it cannot be decoded."""
    try:
        with audit.opened(encoded) as file:
            file.draft("RGB", size)  # JPEG files are decoded at a fraction of their size
            return file.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    except audit.Refusal:
        return Image.new("RGB", size, _BLANK)


def _caption(cell: Cell, width: int, measure: Measure) -> Lines:
    number = f" ({cell.label})"
    name = " ".join(cell.class_name.split())
    title = shortened(name, width - measure(number), measure) + number
    if cell.reason is not None:
        return title, *wrapped(["cannot", "be", "decoded:", *cell.reason.split()], " ", width, measure)
    y, x = cell.corner
    parts = [f"S {cell.shorter}", f"x {x}", f"y {y}"]
    if cell.origin is not None:
        parts.insert(0, f"{cell.origin.width} x {cell.origin.height}")
    if cell.flipped:
        parts.append("flipped")
    return title, *wrapped(parts, ", ", width, measure)


def _legend(pen: ImageDraw.ImageDraw, plan: Layout, write: Callable[[int, int, Lines], None]) -> None:
    """Below the header's text."""
    x, y = _MARGIN, _MARGIN + len(plan.header) * _LINE
    for colour, text in ((DECODED, "what is decoded"), (CROP, "the crop")):
        pen.rectangle((x, y + 2, x + 18, y + _TEXT), outline=colour, width=_STROKE)
        write(x + 26, y, (text,))
        x += 170
