"""Sampling: distribution, limits, edges, and the same draw everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.sampler import sample, sample_rows, uniform
from node.errors import EngineError
from node.wire.frames import Sampling
from tests.node.engine.sorting_sampler import sample_by_sorting

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
finite_logits = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(lambda x: np.array(x, np.float32))
seeds, positions = st.integers(0, 2**63 - 1), st.integers(0, 2**40)


def drawn(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = 4000) -> np.ndarray:
    """How often each token comes at `count` positions, as shares."""
    tokens = [sample(logits, sampling, position) for position in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_temperature_zero_takes_the_highest_and_of_equals_the_first() -> None:
    assert sample(LOGITS, Sampling(), 7) == 1
    assert sample(np.array([0, 3, 3, 1], np.float32), Sampling(seed=5), 7) == 1


def test_tokens_come_as_often_as_their_probability_says() -> None:
    # 4,000 draws: a share's standard deviation is below 0.008
    assert drawn(Sampling(temperature=1, seed=1)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.035)


def test_temperature_sharpens_and_flattens() -> None:
    squared = np.array([0.01, 0.16, 0.04, 0.09])
    assert drawn(Sampling(temperature=0.5, seed=2)) == pytest.approx(squared / squared.sum(), abs=0.035)
    assert drawn(Sampling(temperature=100, seed=2)) == pytest.approx([0.25] * 4, abs=0.035)


def test_top_k_keeps_the_k_highest() -> None:
    assert drawn(Sampling(temperature=1, top_k=2, seed=3)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.035)
    assert drawn(Sampling(temperature=1, top_k=1, seed=3), count=50)[1] == 1
    assert drawn(Sampling(temperature=1, top_k=1_000_000, seed=3)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.035)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert drawn(Sampling(temperature=1, top_p=0.65, seed=4)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.035)
    assert drawn(Sampling(temperature=1, top_p=1e-9, seed=4), count=50)[1] == 1


def test_top_p_counts_among_what_top_k_left() -> None:
    # of 0.4 and 0.3 the first alone is 57 %
    assert drawn(Sampling(temperature=1, top_k=2, top_p=0.55, seed=4), count=50)[1] == 1


def test_of_equal_logits_top_k_keeps_the_lower_ids() -> None:
    shares = drawn(Sampling(temperature=1, top_k=2, seed=5), np.zeros(5, np.float32), 200)
    assert shares[:2].sum() == 1


def test_of_logits_that_differ_by_next_to_nothing_top_k_keeps_the_higher() -> None:
    shares = drawn(Sampling(temperature=1, top_k=1, seed=5), np.array([0, 1e-45], np.float32), 20)
    assert shares[1] == 1


@given(finite_logits, st.floats(1e-3, 100), st.floats(1e-6, 1), st.integers(0, 50), seeds, positions)
def test_a_draw_is_always_one_of_the_kept_tokens(
    logits: np.ndarray, temperature: float, top_p: float, top_k: int, seed: int, position: int
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    token = sample(logits, sampling, position)
    assert 0 <= token < len(logits)
    assert token == sample(logits.copy(), sampling, position)
    if top_k:
        assert (logits > logits[token]).sum() < top_k


@given(seeds, positions)
def test_the_random_number_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    number = uniform(seed, position)
    assert 0 <= number < 1
    assert number == uniform(seed, position)
    assert number != uniform(seed, position + 1)
    assert number != uniform(seed ^ 1, position)


def test_the_random_numbers_are_those_of_every_other_node() -> None:
    # Written down once: another value would let two versions of a swarm sample differently.
    assert uniform(0, 0) == 0.011546754286331562
    assert uniform(42, 7) == 0.649420079613736


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    shares = drawn(Sampling(temperature=2, seed=6), logits, 300)
    assert shares[[0, 2]].sum() == 0
    assert shares[1] > 0 < shares[3]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1, top_p=0.9)])
@pytest.mark.parametrize("logits", [[0, np.nan, 1], [-np.inf] * 3, [0, np.inf, 1], [np.nan] * 3])
def test_logits_that_name_no_token_are_an_error(logits: list[float], sampling: Sampling) -> None:
    with pytest.raises(EngineError, match="logits"):
        sample(np.array(logits, np.float32), sampling, 3)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature, seed=1), count=20)[1] == 1


some_values = st.lists(st.sampled_from([0.0, 1.0, 1.0 + 2**-20, -3.0, 5.0, -np.inf]), min_size=1, max_size=60)
any_values = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=60)
top_ps = st.one_of(st.sampled_from([1e-300, 1e-9, 0.25, 0.5, 0.75, 0.9, 1 - 1e-9, 1 - 2**-53, 1.0]), st.floats(1e-6, 1))
top_ks = st.one_of(st.integers(0, 80), st.sampled_from([1_000_000]))
temperatures = st.one_of(st.floats(1e-3, 100), st.sampled_from([5e-324, 1e-30, 1.0]))


@given(st.one_of(some_values, any_values), st.integers(1, 30), temperatures, top_ps, top_ks, seeds, positions)
@settings(deadline=None)
def test_the_token_is_that_of_sorting_the_vocabulary(
    values: list[float], times: int, temperature: float, top_p: float, top_k: int, seed: int, position: int
) -> None:
    """With many equal logits, all of them, more and fewer than are selected at first."""
    logits = np.array(values * times, np.float32)
    if not np.isfinite(logits.max()):
        return
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    assert sample(logits, sampling, position) == sample_by_sorting(logits, sampling, position)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 12.0),
    st.sampled_from([np.float32, np.float16]),
    temperatures,
    top_ps,
    st.sampled_from([0, 1, 40, 300, 5000, 151_936, 1_000_000]),
    seeds,
)
@settings(deadline=None, max_examples=60)
def test_of_a_large_vocabulary_too(
    noise: int, spread: float, kind: type[np.floating], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    """Narrow numbers make thousands of ties; a spread of 0 makes nothing else."""
    logits = (spread * np.random.default_rng(noise).standard_normal(151_936)).astype(kind).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    for position in range(3):
        assert sample(logits, sampling, position) == sample_by_sorting(logits, sampling, position)


@pytest.mark.parametrize("copies", [3, 300, 3000])
@pytest.mark.parametrize("top_p", [0.1, 0.2, 0.5, 2 / 3, 0.9])
def test_a_sum_that_reaches_top_p_exactly_is_no_matter_of_rounding(copies: int, top_p: float) -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4] * copies, np.float32))
    for temperature in (0.1, 1.0, 10.0):
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=3)
        for position in range(20):
            assert sample(logits, sampling, position) == sample_by_sorting(logits, sampling, position)


def test_min_p_leaves_out_what_is_less_probable_than_its_part_of_the_highest() -> None:
    # of 0.4 half is 0.2: 0.1 goes
    assert drawn(Sampling(temperature=1, min_p=0.49, seed=3)) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=0.035)
    assert drawn(Sampling(temperature=1, min_p=1, seed=3), count=50)[1] == 1


def test_typical_p_leaves_out_the_most_surprising_and_the_least() -> None:
    logits = np.log(np.array([0.85, 0.05, 0.05, 0.05], np.float32))
    # the mean surprise is 0.59 nats: that of 0.85 is 0.16, of 0.05 three
    assert drawn(Sampling(temperature=1, typical_p=0.8, seed=3), logits, 100)[0] == 1
    flat = np.log(np.array([0.3, 0.2, 0.2, 0.2, 0.1], np.float32))
    shares = drawn(Sampling(temperature=1, typical_p=0.55, seed=3), flat, 600)
    assert shares[[0, 4]].sum() == 0, "the highest is not typical where most of the weight lies below it"


def test_a_bias_is_added_before_anything_else() -> None:
    assert sample(LOGITS, Sampling(logit_bias=((0, 5.0), (99, 100.0))), 7) == 0
    shares = drawn(Sampling(temperature=1, seed=1, logit_bias=((1, -1000.0),)))
    assert shares == pytest.approx([1 / 6, 0, 2 / 6, 3 / 6], abs=0.035)


@given(
    st.one_of(some_values, any_values),
    temperatures,
    st.one_of(st.just(0.0), st.floats(0, 1)),
    st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    st.lists(st.tuples(st.integers(0, 70), st.floats(-20, 20)), max_size=3, unique_by=lambda pair: pair[0]),
    seeds,
    positions,
)
@settings(deadline=None)
def test_min_p_typical_p_and_biases_are_those_of_sorting_the_vocabulary(
    values: list[float],
    temperature: float,
    min_p: float,
    typical_p: float,
    biases: list[tuple[int, float]],
    seed: int,
    position: int,
) -> None:
    logits = np.array(values, np.float32)
    if not np.isfinite(logits.max()):
        return
    sampling = Sampling(
        temperature=temperature, min_p=min_p, typical_p=typical_p, logit_bias=tuple(biases), seed=seed, top_k=40
    )
    assert sample(logits, sampling, position) == sample_by_sorting(logits, sampling, position)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_rows_of_a_batch_get_what_each_gets_alone(noise: int, rows: int) -> None:
    random = np.random.default_rng(noise)
    logits = (3 * random.standard_normal((rows, 400))).astype(np.float32)
    kinds = [Sampling(), Sampling(temperature=1, top_p=0.9, seed=3), Sampling(temperature=2, min_p=0.1, seed=9)]
    kinds.append(Sampling(logit_bias=((7, 50.0),)))
    samplings = [kinds[int(number)] for number in random.integers(0, len(kinds), rows)]
    places = [int(place) for place in random.integers(0, 1000, rows)]
    if rows > 2:
        logits[1, 5] = np.nan
    together = sample_rows(logits, samplings, places)
    for row, (sampling, place) in enumerate(zip(samplings, places, strict=True)):
        if rows > 2 and row == 1:
            assert "maximum nan" in str(together[row])
        else:
            assert together[row] == sample(logits[row], sampling, place)
