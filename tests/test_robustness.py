"""Effective robustness against points that lie on a logit line, least squares by hand, and the ends of the scale."""

import math

import numpy as np
import pytest

from surefoot.errors import SettingError
from surefoot.robustness import Baseline, effective_robustness


def line(slope: float, intercept: float, accuracy: float) -> float:
    """beta, written with odds: odds_ood = exp(intercept) odds_id^slope."""
    odds = math.exp(intercept) * (accuracy / (1 - accuracy)) ** slope
    return odds / (1 + odds)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.9, -1.6), (1.4, 0.3)])
def test_points_on_a_logit_line_give_it_back(slope: float, intercept: float) -> None:
    id_accuracies = [0.2, 0.35, 0.6, 0.8]
    baseline = Baseline.fit(id_accuracies, [line(slope, intercept, p) for p in id_accuracies])
    assert (baseline.slope, baseline.intercept) == (pytest.approx(slope), pytest.approx(intercept, abs=1e-12))
    for p in (0.1, 0.5, 0.9):
        assert baseline.at(p) == pytest.approx(line(slope, intercept, p))


def test_model_on_the_line_has_no_effective_robustness() -> None:
    baseline = Baseline.fit([0.3, 0.7], [line(0.9, -1.2, 0.3), line(0.9, -1.2, 0.7)])
    assert effective_robustness(0.55, line(0.9, -1.2, 0.55), baseline) == pytest.approx(0, abs=1e-12)


def test_effective_robustness_is_accuracy_above_the_line() -> None:
    baseline = Baseline.fit([0.5, 0.8], [0.2, 0.5])
    assert effective_robustness(0.5, 0.3, baseline) == pytest.approx(0.1)
    assert effective_robustness(0.8, 0.4, baseline) == pytest.approx(-0.1)


def test_line_is_straight_in_logits_not_in_accuracies() -> None:
    middle = Baseline.fit([0.5, 0.9], [0.1, 0.5]).at(0.7)
    assert middle == pytest.approx((7 / 3) / (9 + 7 / 3))  # odds 1/9 and 1 are 1/9 of odds 1 and 9
    assert abs(middle - 0.3) > 0.05


def test_fit_is_least_squares_between_logits() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.2, 0.9, size=(2, 12))
    logit_x, logit_y = (np.log(v / (1 - v)) for v in (x, y))
    (slope, intercept), *_ = np.linalg.lstsq(np.stack([logit_x, np.ones(12)], axis=1), logit_y)
    baseline = Baseline.fit(x.tolist(), y.tolist())
    assert (baseline.slope, baseline.intercept) == (pytest.approx(slope), pytest.approx(intercept))


def test_order_of_references_does_not_matter() -> None:
    a, b = Baseline.fit([0.2, 0.5, 0.8], [0.1, 0.4, 0.5]), Baseline.fit([0.8, 0.2, 0.5], [0.5, 0.1, 0.4])
    assert (a.slope, a.intercept, a.low, a.high) == (pytest.approx(b.slope), pytest.approx(b.intercept), 0.2, 0.8)


def test_accuracies_of_0_and_1_are_clipped() -> None:
    ends = Baseline.fit([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert (ends.slope, ends.intercept) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert (ends.at(0.0), ends.at(1.0)) == (pytest.approx(0.001), pytest.approx(0.999))
    assert Baseline.fit([0.0, 0.5], [0.0, 0.5], margin=0.01).at(0.0) == pytest.approx(0.01)


def test_a_reference_that_is_never_right_does_not_turn_the_line_alone() -> None:
    id_accuracies = [0.3, 0.4, 0.5, 0.6, 0.7]
    ood = [line(1.0, -2.0, p) for p in id_accuracies]
    clipped, extreme = (Baseline.fit([*id_accuracies, 0.2], [*ood, 0.0], margin=margin) for margin in (1e-3, 1e-9))
    assert abs(clipped.slope - 1) < abs(extreme.slope - 1) / 3


def test_range_of_the_references_is_known() -> None:
    baseline = Baseline.fit([0.3, 0.7], [0.1, 0.4])
    assert [baseline.extrapolates(p) for p in (0.29, 0.3, 0.5, 0.7, 0.71)] == [True, False, False, False, True]


def test_steep_line_stays_finite() -> None:
    steep = Baseline.fit([0.5, 0.5001], [0.1, 0.9])
    assert (steep.at(0.001), steep.at(0.999)) == (0, 1)


@pytest.mark.parametrize(("id_accuracies", "ood_accuracies"), [([], []), ([0.5], [0.4]), ([0.5, 0.6], [0.4])])
def test_too_few_references_are_an_error(id_accuracies: list[float], ood_accuracies: list[float]) -> None:
    with pytest.raises(SettingError, match=r"It needs both of every reference model, and at least two models\. Evaluate"):
        Baseline.fit(id_accuracies, ood_accuracies)


@pytest.mark.parametrize("id_accuracies", [[0.5, 0.5, 0.5], [0.0, 0.0005]])
def test_references_of_one_accuracy_are_an_error(id_accuracies: list[float]) -> None:
    with pytest.raises(SettingError, match=r"A line needs at least two different ones\. Add reference models"):
        Baseline.fit(id_accuracies, [0.2, 0.3, 0.4][: len(id_accuracies)])


@pytest.mark.parametrize("value", [-0.1, 1.1, 81.2, math.nan])
def test_accuracy_out_of_range_is_an_error(value: float) -> None:
    baseline = Baseline.fit([0.3, 0.7], [0.1, 0.4])
    for call in (
        lambda: Baseline.fit([0.3, value], [0.1, 0.4]),
        lambda: Baseline.fit([0.3, 0.7], [0.1, value]),
        lambda: baseline.at(value),
        lambda: effective_robustness(0.5, value, baseline),
        lambda: effective_robustness(value, 0.5, baseline),
    ):
        with pytest.raises(SettingError, match=r"must be in 0\.\.1\. Divide a percentage by 100"):
            call()


@pytest.mark.parametrize("margin", [0.0, 0.5, -1.0, math.nan])
def test_margin_out_of_range_is_an_error(margin: float) -> None:
    with pytest.raises(SettingError, match=r"margin is .* between 0 and 0\.5\. Use 1e-3"):
        Baseline.fit([0.3, 0.7], [0.1, 0.4], margin=margin)
