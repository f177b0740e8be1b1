"""Which settings are tried next: Optuna's tree-structured Parzen estimator, asked anew for every trial.

The answer follows from the seed, the trial's number and what was tried before, and from nothing that lives in memory. A search that was
interrupted therefore goes on exactly as it would have without the interruption.

References:
    Bergstra, Bardenet, Bengio, Kégl, Algorithms for hyper-parameter optimization, NeurIPS 2011. Akiba et al., Optuna, KDD 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surefoot.errors import SettingError
from surefoot.tune.space import Between, Range, Settings, untried

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANDOM_TRIALS = 5  # before the estimator has a say; its own default of 10 would leave it a third of the usual budget
DRAWS = 50


def require_optuna() -> None:
    """Raises SettingError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise SettingError("The search needs Optuna, which is not installed. Run: pip install 'surefoot[tune]'") from error


def suggest(space: Mapping[str, Range], tried: Sequence[tuple[Settings, float]], *, seed: int) -> Settings | None:
    """The settings of the next trial.

    Args:
        space: what is searched.
        tried: settings and scores of all trials so far, in their order; the score of one that failed is 0.
        seed: of the search.

    Returns:
        Settings that were not tried yet; None when the space holds no others.
    """
    import optuna

    distributions = {key: _distribution(what) for key, what in space.items()}
    before = [settings for settings, _ in tried]
    sampler_seed = (seed * 1_000_003 + len(tried)) % 2**32
    with _quiet():
        sampler = optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for settings, value in tried:
            if all(settings[key] in what for key, what in space.items()):  # the plan's own may lie outside
                study.add_trial(optuna.trial.create_trial(params=settings, distributions=distributions, value=value))
        for _ in range(DRAWS):
            drawn = _rounded(space, study.ask(distributions).params)
            if drawn not in before:
                return drawn
    return untried(space, before)


def _distribution(what: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(what, Between):
        return CategoricalDistribution(what.values)
    if what.whole:
        return IntDistribution(int(what.low), int(what.high), log=what.log)
    return FloatDistribution(what.low, what.high, log=what.log)


def _rounded(space: Mapping[str, Range], params: Mapping[str, Any]) -> Settings:
    """Three digits of a number, which a person can read and write down; never outside its range."""

    def readable(what: Range, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(what, Between) or what.whole:
            return value
        return min(max(float(f"{value:.3g}"), what.low), what.high)

    return {key: readable(what, params[key]) for key, what in space.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line for every study; its level is put back, since a caller may use Optuna too."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
