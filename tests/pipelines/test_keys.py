import numpy as np

from pipelines import keys
from pipelines.keys import Purpose


def test_philox_gives_the_published_known_answers() -> None:
    """Random123's kat_vectors, philox4x32 with 10 rounds."""
    full = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    cases = [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([full] * 4, (full, full), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    for counter, key, expected in cases:
        assert keys.philox(np.array([counter], np.uint32), key)[0].tolist() == expected


def test_words_do_not_repeat_between_seeds_epochs_rows_and_purposes() -> None:
    rows = np.arange(50)
    drawn = [
        tuple(w)
        for seed in (0, 1, 1 << 33)
        for epoch in (0, 1, 2)
        for purpose in Purpose
        for w in keys.words(seed, epoch, rows, purpose).tolist()
    ]
    assert len(set(drawn)) == len(drawn)


def test_draws_have_their_distributions() -> None:
    w = keys.words(3, 1, np.arange(40_000), Purpose.SCALE_AND_CROP)
    counts = np.bincount(keys.below(w[:, 0], 7), minlength=7)
    assert counts.sum() == 40_000
    assert np.abs(counts - 40_000 / 7).max() < 5 * np.sqrt(40_000 / 7)
    a, b = keys.normal(w[:, 1], w[:, 2])
    assert abs(a.mean()) < 0.03
    assert abs(b.std() - 1) < 0.03
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_a_permutation_is_one() -> None:
    p = keys.permutation(1000, 5, 2, Purpose.GROUP_ORDER, 3)
    assert sorted(p.tolist()) == list(range(1000))
    assert p.tolist() != keys.permutation(1000, 5, 2, Purpose.GROUP_ORDER, 4).tolist()
