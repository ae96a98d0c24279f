"""A decoder that ends its process is found out in a process of its own."""

import logging
import sys
from pathlib import Path

import pytest

from pipelines import probe
from pipelines.decoding import Decoding


@pytest.fixture(autouse=True)
def forgotten() -> None:
    probe._decodes_windows.cache_clear()


def program(place: Path, line: str) -> str:
    """What takes Python's place."""
    file = place / "python"
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)
    return str(file)


def test_what_is_tried_is_something_that_a_decoder_takes() -> None:
    assert probe.main("cpu") == 0
    assert probe.safe(None) == Decoding()


def test_the_program_finds_this_project_whatever_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU in the GPU's place."""
    monkeypatch.chdir(tmp_path)
    python = program(tmp_path, f'exec {sys.executable} "$1" "$2" cpu')
    monkeypatch.setattr(sys, "executable", python)
    assert probe.safe(0) == Decoding()


@pytest.mark.parametrize("end", ["kill -SEGV $$", "exit 3", "exec sleep 100"])
def test_one_that_crashes_fails_or_hangs_gets_whole_images(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, end))
    monkeypatch.setattr(probe, "_SECONDS", 1.0)
    with caplog.at_level(logging.WARNING):
        assert probe.safe(0) == Decoding(regions=False)
        assert probe.safe(0) == Decoding(regions=False)
    assert len(caplog.messages) == 1, "it is tried, and told of, once"
    assert caplog.messages[0].startswith("this GPU's decoder fails on windows of images (")
    assert "\n" not in caplog.messages[0]
