"""A thousand damaged copies of the shipped job files: `verydeep plan` of each is a plan, or lines that say what is wrong."""

# ruff: noqa: E501

import contextlib
import copy
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipelines.shards import DataSet

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "jobs").glob("*.yaml"))
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 32, 224, 10**6, 2**63, 2**64, 10**40, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-9, 1e308,
    5e-324, float("inf"), float("nan"), "", " ", "a", "e", "A", "E", "digits", ".", "..", "../x", "/", "~", "~no-such-user/x", "x" * 300,
    "/" + "y" * 300, "/a\0b", "\ud800", "ä€😀", "a b", "a\nb", "a:b", "${env:HOME}", "${env:NOT_THERE}", "${x}", "$${env:x}",
    "auto", "null", "1", "1e3", "conv1_1", "fc3", "features", "several", "dense", "paper", "torchvision", "plateau", "step", "cosine",
    "exact", "x.pth", "./x.safetensors", [], [[]], {}, [1, 2], [2, 1], [32, 64], [256], [0, 0], ["a"], ["a", "e"], ["B", "C"], [0.1, 0.2],
    [[256, 384], 384], {"a": 1}, {"from": "a"}, {"x": {"x": {"x": [{"x": 1}]}}}, list(range(50)), ["fc1", "fc1"], {"1": 2},
]  # fmt: skip
KEYS = [
    "name", "data", "train", "val", "storage", "cluster", "workers", "checkpoints", "keep", "every_minutes", "stages", "evaluations",
    "net", "scale", "init", "from", "except", "random", "std", "batch", "epochs", "learning_rate", "schedule", "plateau", "step", "cosine",
    "warmup_epochs", "freeze", "learning_rates", "clip_norm", "validation_scale", "width", "input_size", "reproducible", "batch_norm",
    "virtual_shards", "micro_batch", "seed", "after", "recipe", "models", "mode", "scales", "mirror", "fuse", "patience", "max_failures",
    "cpus_per_worker", "side_by_side", "", "<<", "a.b", "..", "x" * 300, "ä", "a\nb", "\ud800", "1", "null", "true", "${env:HOME}", "a/b",
]  # fmt: skip
FRAGMENTS = [
    "{", "}", "[", "]", ":", " ", "\n", "\n ", "- ", ", ", "null", "-1", "1e400", ".nan", ".inf", "&a ", "*a", "? ", '"', "'", "\t", "\x07",
    "!!python/object:os.system ", "!!set ", "!!str ", "!!int ", "!!binary ", "<<: *a", "1: 2", "[]", "{}", "9" * 400, "9" * 5000,
    "0x" + "f" * 6000, "2026-01-01", "2026-99-99", "1:30", "[1, 2]: 3", "---\n", "...\n", "%YAML 9.9\n", "|\n", ">\n", "#", "\\", "\\ud800",
    '"\\ud800"', '"\\0"', "\u2028", "\ufeff", "\x85", "\ud800", "${", "${env:HOME}", "${env:", "$${env:x}", "[" * 300, "{a: " * 300, "~", "=", "@",
]  # fmt: skip
LINE = re.compile(r"verydeep: (job\.yaml(:\d+:\d+)?: |--set )\S.*")

Tree = dict[str, Any] | list[Any]


def spots(tree: Any) -> list[tuple[Tree, Any]]:
    """All places of a tree: what holds them, and their key or number."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [spot for key, below in list(pairs) for spot in [(tree, key), *spots(below)]]


@st.composite
def damaged_trees(draw: st.DrawFn, text: str) -> str:
    """Of a job, keys and values deleted, renamed, doubled, exchanged and replaced."""
    tree = yaml.load(text, yaml.CSafeLoader)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(spots(tree) or [([0], 0)]))
        how = draw(st.sampled_from(["delete", "rename", "replace", "replace", "exchange", "add", "nest", "copy"]))
        other, other_key = draw(st.sampled_from(spots(tree) or [([0], 0)]))
        name = draw(st.sampled_from(KEYS))
        if how == "delete":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[name] = holder.pop(key)
        elif how == "exchange":
            holder[key], other[other_key] = copy.deepcopy([other[other_key], holder[key]])
        elif how == "copy":
            holder[key] = copy.deepcopy(other[other_key])
        elif how == "add" and isinstance(holder[key], dict):
            holder[key][name] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "nest":
            holder[key] = draw(st.sampled_from([{name: holder[key]}, [holder[key]], [holder[key], holder[key]]]))
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    # Where YAML cannot be written, as of lone surrogates, JSON is.
    flow = draw(st.sampled_from([None, True, False]))
    try:
        options = {"default_flow_style": flow, "sort_keys": False, "allow_unicode": draw(st.booleans())}
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, **options)  # type: ignore[no-any-return]
    except UnicodeError:
        return json.dumps(tree)


@st.composite
def damaged_texts(draw: st.DrawFn, text: str) -> str:
    """Of a job file, characters, lines and indentation deleted, inserted and exchanged."""
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True) or [""]
        at, row = draw(st.integers(0, len(text))), draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["insert", "insert", "delete", "line", "indent", "swap", "end"]))
        if how == "insert":
            text = text[:at] + draw(st.sampled_from(FRAGMENTS) | st.text(max_size=4)) + text[at:]
        elif how == "delete":
            text = text[:at] + text[at + draw(st.integers(1, 12)) :]
        elif how == "end":
            text = text[:at]
        else:
            other = draw(st.integers(0, len(lines) - 1))
            if how == "line":
                lines[row] = draw(st.sampled_from(["", lines[row] * 2, lines[other]]))
            elif how == "indent":
                lines[row] = draw(
                    st.sampled_from([" " + lines[row], "  " + lines[row], lines[row].lstrip(" "), "\t" + lines[row]])
                )
            else:
                lines[row], lines[other] = lines[other], lines[row]
            text = "".join(lines)
    return text


def jobs_on(data: tuple[str, str], storage: Path) -> dict[str, str]:
    """The shipped job files, on data that is there."""
    texts = {}
    for file in FILES:
        text = re.sub(r"^data: .*$", f"data: {{train: {data[0]}, val: {data[1]}}}", file.read_text(), flags=re.M)
        text, found = re.subn(r"^storage: .*$", f"storage: {storage}", text, flags=re.M)
        texts[file.stem] = text if found else text.replace("\ncluster:", f"\nstorage: {storage}\ncluster:")
    return texts


@pytest.fixture
def place(digits: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, home, working folder and all. Data sets are opened once, since nothing here changes them."""
    opened: dict[str, DataSet] = {}
    really = DataSet.open

    def once(place: str) -> DataSet:
        if place in digits and place not in opened:
            opened[place] = really(place)
        return opened.get(place) or really(place)

    monkeypatch.setattr(DataSet, "open", once)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOT_THERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


written: list[str] = []  # by this process, since it was last emptied
_NAMING = {
    "os.mkdir": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
    "os.symlink": 1,
    "os.link": 1,
}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event in _NAMING and isinstance(arguments[_NAMING[event]], str | bytes):
        written.append(os.path.abspath(os.fsdecode(arguments[_NAMING[event]])))


sys.addaudithook(_watch)


def check(place: Path, text: str) -> int:
    """Plans a job of this text as a user does. Returns the exit status."""
    (place / "job.yaml").write_bytes(text.encode(errors="surrogatepass"))
    out, errors = io.StringIO(), io.StringIO()
    written.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(["plan", "job.yaml"])
    outside = [path for path in written if not path.startswith((str(place), "/dev/null"))]
    assert not outside, outside
    if status == 0:
        assert out.getvalue().strip()
        assert not errors.getvalue()
    else:
        assert status == 2, errors.getvalue()
        assert not out.getvalue()
        lines = errors.getvalue().removesuffix("\n").split("\n")
        assert all(LINE.fullmatch(line) for line in lines), errors.getvalue()
        errors.getvalue().encode()
    return status


@pytest.mark.parametrize("kind", [damaged_trees, damaged_texts])
def test_any_damage_gives_a_plan_or_lines_that_say_what_is_wrong(
    kind: Any, place: Path, digits: tuple[str, str]
) -> None:
    texts = jobs_on(digits, place / "storage")
    assert set(texts) >= {"demo", "paper", "photos", "vgg_a", "vgg_d", "vgg_e"}
    assert all(check(place, text) == 0 for text in texts.values())
    found = {0: 0, 2: 0}

    @settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(texts)).flatmap(lambda name: kind(texts[name])))
    def damage(text: str) -> None:
        found[check(place, text)] += 1

    damage()
    assert min(found.values()) >= 20, found  # both ends are reached
