"""What cannot be measured is told of in one line, before anything is started."""

from pathlib import Path

import pytest

from benchmarks import gpu, namespaces, network, scaling


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        pytest.fail("it has begun")

    monkeypatch.setattr(gpu, "_guarded", start)
    monkeypatch.setattr(scaling, "points", start)
    monkeypatch.setattr(namespaces, "refusal", start)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("program", "options", "told"),
    [
        (gpu, "--json /nowhere/a.json", "--json: /nowhere/a.json: there is no folder /nowhere"),
        (gpu, "--json {folder}", "--json: {folder}: is a folder"),
        (gpu, "--photos /nowhere", "--photos: /nowhere: there is no such folder"),
        (scaling, "--json /nowhere/a.json", "--json: /nowhere/a.json: there is no folder /nowhere"),
        (scaling, "--png /nowhere/a.png", "--png: /nowhere/a.png: there is no folder /nowhere"),
        (network, "--json /nowhere/a.json", "--json: /nowhere/a.json: there is no folder /nowhere"),
        (network, "--workers 2 0", "--workers: 0: at least 2, at most 254"),
        (network, "--workers 300", "--workers: 300: at least 2, at most 254"),
        (network, "--workers two", "--workers: two: is no whole number"),
        (network, "--rounds 0", "--rounds: 0: at least 1, at most 1e+06"),
        (network, "--gbit 0", "--gbit: 0: at least 0.001, at most 1000"),
        (network, "--gbit nan", "--gbit: nan: at least 0.001, at most 1000"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(
    program: object, options: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options.format(folder=tmp_path).split()
    with pytest.raises(SystemExit) as end:
        program.main(given)  # type: ignore[attr-defined]
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {told.format(folder=tmp_path)}")
