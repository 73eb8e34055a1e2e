import numpy as np
import plain_despeckle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarlang_sft.despeckle import FILTERS, REACH, count_looks, enl, estimate_looks, refined_lee


def speckled(truth: np.ndarray, looks: float, seed: int = 0) -> np.ndarray:
    return truth * np.random.default_rng(seed).gamma(looks, 1 / looks, truth.shape)


def everywhere(image: np.ndarray) -> np.ndarray:
    return np.full(image.shape, True)


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Speckle on a step of up to 60 dB with a bright target, holes and an invalid corner; from 1 x 1 pixel on."""
    height, width, seed = draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.integers(0, 2**31))
    looks = draw(st.sampled_from([0.7, 1.0, 4.3, 60.0]))
    rng = np.random.default_rng(seed)
    across = np.cos(angle := rng.uniform(0, 7)) * np.arange(height)[:, None] + np.sin(angle) * np.arange(width)
    image = speckled(np.where(across > np.median(across), 10.0 ** draw(st.integers(-6, 6)), 1.0), looks, seed)
    image[rng.integers(height), rng.integers(width)] *= 1e5
    valid = rng.random(image.shape) >= draw(st.sampled_from([0.0, 0.1, 0.9]))
    valid[: height // 3, width // 2 :] &= draw(st.booleans())
    return np.where(valid, image, np.nan), valid, looks


@pytest.mark.parametrize("name", ["refined_lee", "boxcar"])
@given(case=images())
@settings(max_examples=25, deadline=None)
def test_filters_equal_plain_loops(name: str, case: tuple[np.ndarray, np.ndarray, float]) -> None:
    image, valid, looks = case
    plain = getattr(plain_despeckle, name)(image, valid, looks)
    assert FILTERS[name](image, valid, looks) == pytest.approx(plain, rel=1e-5)


def test_a_tall_image_is_filtered_as_one() -> None:
    image = speckled(np.ones((200, 9)), 2)
    assert refined_lee(image, everywhere(image), 2) == pytest.approx(
        plain_despeckle.refined_lee(image, everywhere(image), 2), rel=1e-9
    )


@pytest.mark.parametrize("name", FILTERS)
def test_a_pixel_depends_on_its_neighbourhood_alone_to_the_last_bit(name: str) -> None:
    image = speckled(np.ones((90, 80)), 1)
    cut = np.s_[31:60, 23:57]
    around = np.s_[31 - REACH : 60 + REACH, 23 - REACH : 57 + REACH]
    whole = FILTERS[name](image, everywhere(image), 1)
    part = FILTERS[name](image[around], everywhere(image[around]), 1)
    assert np.array_equal(whole[cut], part[REACH:-REACH, REACH:-REACH])
    image[5, 70] = 1e15
    assert np.array_equal(whole[cut], FILTERS[name](image, everywhere(image), 1)[cut]), "a bright target leaks"


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_not_valid_has_no_influence(name: str) -> None:
    image = speckled(np.ones((40, 40)), 4)
    valid = np.random.default_rng(1).random(image.shape) > 0.3
    results = [FILTERS[name](np.where(valid, image, hole), valid, 4) for hole in (np.nan, np.inf, 0.0, -1e30)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert (results[0][~valid] == 0).all() and (results[0][valid] > 0).all()


@pytest.mark.parametrize("slope", [(1, 0), (0, 1), (1, 1), (1, -1)])
def test_refined_lee_keeps_edges_that_boxcar_blurs(slope: tuple[int, int]) -> None:
    across = slope[0] * np.arange(-32, 32)[:, None] + slope[1] * np.arange(-32, 32)
    truth = np.where(across >= 0, 8.0, 1.0)
    at_edge = np.pad(np.abs(across[4:-4, 4:-4]) <= 2, 4)
    kept = refined_lee(truth, everywhere(truth), 4)[at_edge]
    assert kept == pytest.approx(truth[at_edge]), "an edge without speckle is left alone"
    image = speckled(truth, 4)
    errors = {
        name: np.abs(10 * np.log10(FILTERS[name](image, everywhere(image), 4) / truth))[at_edge].mean()
        for name in FILTERS
    }
    assert errors["refined_lee"] < 0.7 * min(errors["boxcar"], errors["none"])


@pytest.mark.parametrize("looks", [1, 4])
def test_filters_smooth_constant_areas_and_keep_their_mean(looks: int) -> None:
    image = speckled(np.full((200, 200), 7.0), looks)
    for name, gain in (("boxcar", 40), ("refined_lee", 8)):
        filtered = FILTERS[name](image, everywhere(image), looks)[REACH:-REACH, REACH:-REACH]
        assert enl(filtered) > gain * looks and filtered.mean() == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_looks_are_found_in_spite_of_edges_texture_and_holes(looks: float) -> None:
    rng = np.random.default_rng(0)
    truth = np.ones((256, 256))
    truth[:, 100:180] = 30
    truth[200:] = rng.gamma(1, 1, (56, 256))
    image = speckled(truth, looks)
    image[40:60, 40:60] = np.nan
    counts = count_looks(image, np.isfinite(image))
    assert estimate_looks(counts) == pytest.approx(looks, rel=0.15)


def test_looks_need_one_whole_window() -> None:
    small = speckled(np.ones((6, 90)), 4)
    assert estimate_looks(count_looks(small, everywhere(small))) is None
    constant = np.ones((20, 20))
    assert estimate_looks(count_looks(constant, everywhere(constant))) is None


def test_looks_are_never_below_one() -> None:
    texture = speckled(np.ones((80, 80)), 1) * np.random.default_rng(1).gamma(0.3, 1 / 0.3, (80, 80))
    assert estimate_looks(count_looks(texture, np.ones(texture.shape, bool))) == 1
