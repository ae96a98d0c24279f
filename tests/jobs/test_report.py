"""A job's report, made from a folder as runs leave it: that it needs nothing beside itself, shows what is stored, and
says what is not there."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cluster import posteriors
from cluster.posteriors import Posteriors
from cluster.settings import EvaluationSettings
from jobs import report, results, schema, stored, summary, tables
from jobs.cli import main
from jobs.results import Result, Subject
from jobs.store import DONE, JOB, REPORT, RESULTS, STAGES, TESTS, read_json, write_json, write_text
from pipelines.errors import DataError
from pipelines.location import Location, public
from pipelines.shards import DataSet
from tests.cluster.test_checkpoint import made, save
from tests.jobs.finished import scores_of
from tests.jobs.page import Page, read

NONE = {"images": 0, "loss_sum": 0.0, "top1": 0, "top5": 0}
SUBJECT = {"model": "a", "net": "A", "trained": [34, 34], "scales": [34]}
EMPTY = {"test": "single", "subjects": [SUBJECT], "mode": "dense", "classes": 10, "totals": NONE}


@pytest.fixture(scope="module")
def html(run: Path, digits: tuple[str, str]) -> str:
    return report.make(read(run), DataSet.open(digits[0]), DataSet.open(digits[1]))


def test_the_page_needs_nothing_beside_itself_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert not page.names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link is not None and link.startswith("data:image/") for link in links)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    style = " ".join(page.said("style"))
    assert "@import" not in style
    assert "url(" not in style


def test_every_picture_is_whole_and_has_words_for_those_who_do_not_see_it(html: str) -> None:
    images = Page(html).attributes("img")
    kinds = []
    for image in images:
        head, _, content = (image["src"] or "").partition(";base64,")
        raw = base64.b64decode(content, validate=True)
        if head == "data:image/svg+xml":
            tree = ElementTree.fromstring(raw)
            hrefs = [value for node in tree.iter() for key, value in node.attrib.items() if key.endswith("href")]
            assert all(href.startswith(("#", "data:")) for href in hrefs)
        else:
            Image.open(io.BytesIO(raw)).load()
        kinds.append(head)
        assert image["alt"]
    assert kinds.count("data:image/svg+xml") == 5  # loss, accuracy, error by Q, confusions, reliability
    assert kinds.count("data:image/jpeg") == 24


def test_the_page_is_for_phones_too(html: str) -> None:
    """That nothing overflows was looked at; here: no layout wider than the screen, tables inside what scrolls."""
    page = Page(html)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    assert len(page.attributes("table")) == html.count('<div class="scroll" tabindex="0"')


def test_the_tables_and_numbers_are_those_that_are_stored(html: str, run: Path) -> None:
    page, job = Page(html), read(run)
    cells = set(page.said("td")) | set(page.said("th"))
    for table in tables.tables(job.results):
        assert table.title in page.said("h3")
        assert cells.issuperset(cell for line in table.lines for cell in line)
    for line in summary.chain(job.stages):
        assert cells.issuperset(line)
    assert "0.01, 0.001 (epoch 3)" in cells
    assert {"1,438", "359"}.isdisjoint(cells)
    assert {"300", "97", "10"} <= set(page.said("dd"))
    best = max(job.results, key=lambda r: r.totals.accuracy)
    assert f"{100 * (1 - best.totals.accuracy):.2f}\u00a0%" in page.said("div")
    assert summary.title(best) in page.said("p")
    assert any("learning_rate: 0.001" in text for text in page.said("pre"))
    assert re.fullmatch(r"Finished; as of \d+ \w+ 20\d\d, \d\d:\d\d UTC", page.said("div")[0])


def test_the_same_things_stored_make_the_same_page(html: str, run: Path, digits: tuple[str, str]) -> None:
    assert report.make(read(run), DataSet.open(digits[0]), DataSet.open(digits[1])) == html


def test_the_sheet_shows_the_images_that_were_mistaken(run: Path, digits: tuple[str, str]) -> None:
    data = DataSet.open(digits[1])
    scores = next(found for _, found in stored.tested_posteriors(read(run)))
    assert isinstance(scores, Posteriors)
    group = data.read_group(0)
    assert len(group.names) == 97
    sheet = report.look_at(scores, data).mistakes
    assert len(sheet) == 24
    for mistake in sheet:
        row = scores.names.index(mistake.name)
        assert scores.classes[scores.labels[row]] == mistake.true != mistake.predicted
        assert scores.scores[row, scores.classes.index(mistake.predicted)] == mistake.confidence >= mistake.right
        assert row not in scores.unreadable
        assert mistake.picture is not None
        shown = np.asarray(Image.open(io.BytesIO(mistake.picture)).convert("RGB"), np.float64)
        original = np.asarray(Image.open(io.BytesIO(bytes(group.encoded[row]))).convert("RGB"), np.float64)
        assert np.abs(shown.mean(axis=(0, 1)) - original.mean(axis=(0, 1))).max() < 4
    assert [m.confidence for m in sheet] == sorted((m.confidence for m in sheet), reverse=True)


def test_an_image_that_cannot_be_decoded_has_no_picture(digits: tuple[str, str]) -> None:
    data = DataSet.open(digits[1])
    scores = scores_of("a", "dense", 34, data)
    group = data.read_group(0)
    broken = replace(group, encoded=[np.frombuffer(b"\xff\xd8 not a picture", np.uint8)] * len(group.encoded))
    object.__setattr__(data, "read_group", lambda number: broken)
    assert {mistake.uri for mistake in report.look_at(scores, data).mistakes} == {None}


def test_names_are_text_and_never_markup(copied: Path, digits: tuple[str, str]) -> None:
    hostile = '<script>alert("x")</script> & <i>'
    job = read(copied)
    scores = scores_of("a", "dense", 34, DataSet.open(digits[1]))
    classes = tuple(f"{hostile} ${i}" for i in range(10))
    posteriors.write(job.root / TESTS / "x.parquet", replace(scores, classes=classes))
    subject = Subject(hostile, "A", (34, 34), (34,), ("x.parquet",), 32, 0.05)
    write_json(job.root / RESULTS, results.to_json([Result("single", (subject,), "dense", 10, scores.totals)]))
    tests = {"single": EvaluationSettings(models=["net.pth"])}  # any name that is no stage's is a file's
    write_text(job.root / JOB, schema.resolved(job.job.model_copy(update={"evaluations": tests})))
    page = Page(report.make(read(copied), None, DataSet.open(digits[1])))
    assert not page.names & {"script", "i"}
    assert hostile in page.said("td")
    assert f"{hostile} $3" in page.said("td")
    assert f"{hostile} $3" in page.said("span")


def test_a_job_that_has_not_finished_says_so_and_shows_its_epochs(copied: Path) -> None:
    job = read(copied)
    (copied / RESULTS).unlink()
    folder = stored.store_of(str(copied)).noted_stages()["e"].path
    (Path(folder.path) / DONE).unlink()
    (Path(folder.path) / "epoch-0002.safetensors").unlink()
    assert not read(copied).stages[1].epochs
    empty = Page(report.make(read(copied), None, None))
    assert "Stage e has not finished: no epoch is done." in empty.said("p")
    save(folder, made((0.5, 0.6), step=3))
    begun = read(copied)
    page = Page(report.make(begun, None, None))
    assert "Not finished" in page.said("div")[0]
    assert "Stage e has not finished: 2 of at most 6 epochs are done." in page.said("p")
    assert "Not tested yet: single, several, together." in page.said("p")
    assert "2 of 6, not finished" in page.said("td")
    assert len(page.attributes("img")) == 2, "curves"
    assert job.finished
    assert not begun.finished


@pytest.mark.parametrize("odd", [{"epochs": None}, {"epochs": [{}]}, {"epochs": "low loss"}, {"delivered": None}])
def test_a_stage_whose_note_is_damaged_is_told_of(odd: dict[str, Any], copied: Path) -> None:
    done = stored.store_of(str(copied)).noted_stages()["a"].path / DONE
    content = read_json(done)
    assert content is not None
    if odd.get("epochs") == "low loss":
        odd = {"epochs": [{**epoch, "loss": "low"} for epoch in content["epochs"]]}
    write_json(done, {**content, **odd})
    page = Page(report.make(read(copied), None, None))
    assert any(text.startswith("Stage a has finished, but: ") for text in page.said("p"))


def test_posteriors_that_are_gone_leave_the_numbers_and_a_line(copied: Path, html: str) -> None:
    best = max(read(copied).results, key=lambda r: r.totals.accuracy)
    lost = best.subjects[0].posteriors[0]
    (copied / TESTS / lost).unlink()
    found = dict(stored.tested_posteriors(read(copied)))
    page = Page(report.make(read(copied), None, None))
    line = next(text for text in page.said("p") if text.startswith(f"Of {summary.title(best)} there are no pictures"))
    assert lost in line
    shown = next(r for r, scores in found.items() if isinstance(scores, Posteriors))
    assert summary.title(shown) in page.said("p"), "the best of those that are there"
    shutil.rmtree(copied / TESTS)
    page = Page(report.make(read(copied), None, None))
    assert len(page.attributes("img")) == 3, "two curves, and the error by Q of what was tested at one and averaged"
    assert set(page.said("td")) >= {cell for t in tables.tables(read(copied).results) for cell in t.lines[1]}


@pytest.mark.parametrize("which", ["gone", "another"])
def test_without_the_data_set_the_sheet_is_left_out_with_a_line(which: str, run: Path, digits: tuple[str, str]) -> None:
    other = None if which == "gone" else DataSet.open(digits[0])
    page = Page(report.make(read(run), None, other))
    assert any(text.startswith("The mistakes cannot be shown: the validation set is not") for text in page.said("p"))
    assert not any((image["src"] or "").startswith("data:image/jpeg") for image in page.attributes("img"))


def test_each_scale_that_was_averaged_has_its_own_error(run: Path, digits: tuple[str, str]) -> None:
    singles = {(r.subjects[0].model, r.mode, r.subjects[0].scales): r.totals for r in stored.single_scales(read(run))}
    assert set(singles) == {
        *(("e", mode, (q,)) for mode in ("dense", "multi-crop") for q in (32, 36, 40)),
        *((model, "dense", (34,)) for model in "ae"),
    }
    for (model, mode, (q,)), totals in singles.items():
        assert totals == scores_of(model, mode, q, DataSet.open(digits[1])).totals


def test_the_command_line_makes_the_page_and_says_where_it_is(
    run: Path, html: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, file in (
        ([str(run)], run / REPORT),
        ([str(run.parent.parent / "job.yaml"), "--output", str(tmp_path / "page.html")], tmp_path / "page.html"),
    ):
        file.unlink(missing_ok=True)
        assert main(["report", *arguments]) == 0
        assert capsys.readouterr().out.strip() == str(file)
        assert file.read_text() == html


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (shutil.rmtree, r"holds no run of a job \(it has no job.yaml\)"),
        (lambda run: (run / JOB).write_text("name: x"), "job.yaml:1:1: data: is missing"),
        (lambda run: (run / STAGES).unlink(), "stages.json: says nothing of a, e; `verydeep run`"),
        *(
            (
                lambda run, content=content: (run / RESULTS).write_text(json.dumps({"results": content})),
                "results.json: holds no results of this version",
            )
            for content in (
                [1],
                {"a": 1},
                [EMPTY],
                [{**EMPTY, "subjects": []}],
                [{**EMPTY, "totals": {**NONE, "images": 1, "top1": 1}}],
            )
        ),
    ],
)
def test_a_folder_that_is_no_run_or_is_damaged_is_told_of(
    damage: object, line: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied)  # type: ignore[operator]
    assert main(["report", str(copied)]) == 2
    assert re.search(line, capsys.readouterr().err)


def test_a_page_that_cannot_be_written_is_told_of_before_it_is_made(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, reason in ((tmp_path, "is a folder"), (tmp_path / "no" / "page.html", "there is no folder")):
        assert main(["report", str(run), "--output", str(output)]) == 2
        assert f"--output {output}: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "{train: 's3://KEY:SECRET@bucket/a/train?region=x&token=SECRET', val: s3://bucket/b?token=SECRET, at: a@b}",
            "{train: 's3://bucket/a/train', val: s3://bucket/b, at: a@b}",
        ),
        ("/data/a?b", "/data/a?b"),
        ("s3://b/x?region=a,b&secret=SECRET", "s3://b/x"),
        ("train: \"s3://b/x?a='b'}&secret=SECRET\"\nval: /d", 'train: "s3://b/x"\nval: /d'),
        (
            "s3://b/a net-dense-32.parquet?secret=SECRET: cannot be read.",
            "s3://b/a net-dense-32.parquet: cannot be read.",
        ),
        ("s3://KEY:a@SECRET@b/x: is it there? No", "s3://b/x: is it there? No"),
        ("s3://b/x and s3://KEY:SECRET@c/y?secret=SECRET and /d", "s3://b/x and s3://c/y and /d"),
    ],
)
def test_what_may_be_secret_in_a_uri_is_not_on_the_page(text: str, shown: str) -> None:
    assert public(text) == shown


def test_what_is_told_of_stages_and_pictures_has_no_secrets(run: Path) -> None:
    secret = "s3://KEY:SECRET@bucket/x?secret=SECRET"
    job = read(run)
    stages = [replace(stage, problem=f"{secret}: is gone") for stage in job.stages]
    stages[1] = replace(stages[1], finished=False)
    job = replace(job, stages=stages, root=Location(job.root.filesystem, job.root.path + "/no", secret))
    page = Page(report.make(job, None, None))
    assert {
        "Stage a has finished, but: s3://bucket/x: is gone.",
        "Stage e has not finished: s3://bucket/x: is gone.",
    } <= set(page.said("p"))
    assert any(re.search(r"there are no pictures: s3://bucket/x/tests/\S+: ", text) for text in page.said("p"))
    assert "SECRET" not in " ".join(page.said())


def test_mistakes_that_cannot_be_shown_for_an_error_tell_no_secrets(run: Path, digits: tuple[str, str]) -> None:
    data = DataSet.open(digits[1])

    def fails(number: int) -> None:
        raise DataError("s3://KEY:SECRET@bucket/x?secret=SECRET: is gone")

    object.__setattr__(data, "read_group", fails)
    look = report.look_at_best(read(run), data)
    assert look.remarks == ["The mistakes cannot be shown: s3://bucket/x: is gone."]


def test_durations_are_in_the_unit_that_fits() -> None:
    assert [summary.duration(s) for s in (7, 59, 114, 5400, 86400 * 3)] == [
        "7 seconds", "59 seconds", "1.9 minutes", "1.5 hours", "3.0 days"
    ]  # fmt: skip
