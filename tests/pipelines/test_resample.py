"""The functions that DALI calls are compiled once for a machine, and without a cache for each process."""

import ctypes
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import caching, event

from pipelines import resample


def passes() -> int:
    """The compiler's, in making the functions anew."""
    with event.install_recorder("numba:run_pass") as recorder:
        _, setup = resample.callbacks.__wrapped__()
    assert works(setup)
    return len(recorder.buffer)


def works(setup: Any) -> bool:
    """Asked for the shapes of two images of 32 x 40 and 48 x 32 pixels."""
    outs, ins = np.zeros((2, 3), np.int64), np.zeros((6, 2, 2), np.int64)
    ins[5] = [[32, 40], [48, 32]]
    shapes = [np.array([shape.ctypes.data for shape in part.reshape(-1, part.shape[-1])]) for part in (outs, ins)]
    unused = np.zeros(6, np.int32)
    places = [array.ctypes.data_as(ctypes.c_void_p) for array in (*shapes, unused)]
    arguments = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    c_function = ctypes.CFUNCTYPE(None, *arguments, *arguments, ctypes.c_int32)(setup.address)
    c_function(places[0], places[2], 1, places[1], places[2], 6, 2)
    return outs.tolist() == [[3, 32, 40], [3, 48, 32]]


def test_what_is_compiled_once_is_read_from_the_cache_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert passes() > 0
    assert len(list(tmp_path.rglob("*.nbc"))) == 2
    assert passes() == 0


def test_without_a_folder_for_the_cache_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert works(resample._compiled(resample._setup, resample._SETUP))


@pytest.mark.parametrize(("pattern", "length"), [("*.nbi", 0), ("*.nbc", 0), ("*.nbc", 100)])
def test_with_a_spoilt_cache_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, length: int
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    resample._compiled(resample._setup, resample._SETUP)
    (file,) = tmp_path.rglob(pattern)
    file.write_bytes(file.read_bytes()[:length])
    assert works(resample._compiled(resample._setup, resample._SETUP))


def test_when_the_cache_cannot_be_written_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    assert works(resample._compiled(resample._setup, resample._SETUP))
