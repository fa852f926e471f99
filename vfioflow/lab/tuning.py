"""Which settings a scenario should have: searched in the model, then by real runs.  Needs the extra ``tune``.

The search is Optuna's.  The real runs are kept where ``storage`` says, so that they are there the next time,
and more are added to them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, TypeAlias

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from vfioflow.errors import ConfigError
from vfioflow.lab.model import Known, predict
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.policy import Policy
from vfioflow.precopy import Verdict

__all__ = [
    "OBJECTIVES",
    "Candidate",
    "Evaluate",
    "Figures",
    "Objective",
    "Progress",
    "Search",
    "Tuned",
    "tune",
]

Objective: TypeAlias = Literal["downtime", "total", "bytes"]
OBJECTIVES: tuple[Objective, ...] = ("downtime", "total", "bytes")

Evaluate: TypeAlias = Callable[[Policy], Outcome]
"""A real run of the scenario with a policy."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""What is being done, how much of it is, of how much; of real runs, seconds of the budget."""

TRIALS = 300
"""In the model, and as many at random: two seconds for most scenarios."""

_GENERATION = 50

_CANDIDATES = 8
"""That are tried for real, beside the scenario's own policy."""

_NEVER = 1e9
"""What a search is told of a policy with which nothing migrates."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a policy costs: seconds, seconds, bytes."""

    downtime: float
    total: float
    bytes: float

    def of(self, objective: Objective) -> float:
        """One of them."""
        return float(getattr(self, objective))

    def beats(self, other: Figures) -> bool:
        """Whether it is no worse in anything, and better in something."""
        mine, its = (
            (self.downtime, self.total, self.bytes),
            (other.downtime, other.total, other.bytes),
        )
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy: what the model says, None where it would not migrate, and medians of ``runs`` real ones."""

    params: Mapping[str, Any]
    policy: Policy
    predicted: Figures | None
    measured: Figures | None = None
    runs: int = 0
    failed: int = 0

    @property
    def figures(self) -> Figures | None:
        """What was measured, else what is predicted."""
        return self.measured if self.runs else self.predicted


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found.  ``meets``: whether the recommended policy keeps the scenario's downtime limit.

    ``front``: candidates of which none is better in everything than another.  ``importances``: which share of
    the objective each setting decides, in the model.
    """

    scenario: Scenario
    objective: Objective
    before: Candidate
    recommended: Candidate
    meets: bool
    front: tuple[Candidate, ...]
    importances: Mapping[str, float]
    trials: int
    runs: int


def tune(
    scenario: Scenario,
    *,
    objective: Objective = "downtime",
    evaluate: Evaluate | None = None,
    budget: float = 0.0,
    storage: str | None = None,
    trials: int = TRIALS,
    known: Known | None = None,
    progress: Progress = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Search for the policy with the least ``objective`` that keeps the scenario's downtime limit.

    Args:
        scenario: its policy is what is changed; its downtime limit is to be kept.
        objective: "downtime", "total" (seconds from begin to end) or "bytes" (on the wire).
        evaluate: does a real run; None: the model alone decides.
        budget: seconds for real runs; one is done in any case.
        storage: an Optuna storage's URL, such as "sqlite:///study.db"; None: memory.
        trials: in the model.
        known: of this host, for the model.
        progress: told how far it is.
        clock: seconds.

    Raises ConfigError: with no setting does it migrate; the storage is none.
    """
    search = Search(scenario, objective, storage=storage, known=known)
    search.in_model(trials, progress)
    if evaluate is not None:
        search.for_real(evaluate, budget, progress, clock)
    return search.result()


class Search:
    """A search, step by step; what was found so far is there at any time.  See :func:`tune`."""

    def __init__(
        self,
        scenario: Scenario,
        objective: Objective,
        *,
        storage: str | None = None,
        known: Known | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._scenario = scenario
        self._objective = objective
        self._known = known
        # The model's are made anew: they come out the same, in less time than a file takes.  What decides
        # the objective is asked of settings at random: a search looks where it is good, and would blame
        # what it varied there.
        samplers = optuna.samplers
        self._even = self._study("even", None, samplers.RandomSampler(seed=1))
        self._model = self._study(
            "model", None, samplers.NSGAIISampler(seed=1, population_size=_GENERATION)
        )
        self._real = self._study("real", storage, samplers.RandomSampler(seed=1))
        self._before = _params_of(scenario.policy, scenario)

    def _study(
        self, kind: str, storage: str | None, sampler: optuna.samplers.BaseSampler
    ) -> optuna.Study:
        name = f"{self._scenario.name}-{kind}"
        try:
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=["minimize"] * len(OBJECTIVES),
                sampler=sampler,
                load_if_exists=True,
            )
        except Exception as error:  # of whatever library the URL leads to
            raise ConfigError(f"the study cannot be kept in {storage}: {error}") from None
        mark = repr((self._scenario.devices, self._scenario.wire, self._scenario.policy))
        if study.user_attrs.setdefault("scenario", mark) != mark:
            raise ConfigError(
                f"{storage} has a study of another scenario called {self._scenario.name}: name another"
            )
        study.set_user_attr("scenario", mark)
        return study

    # ----------------------------------------------------------------- the model

    def in_model(self, trials: int, progress: Progress) -> None:
        """So many settings at random, then a search of as many."""
        if not self._model.trials:
            self._model.enqueue_trial(dict(self._before))
        for number, study in enumerate((self._even, self._model)):
            for done in self._filled(study, trials):
                progress("the model", number * trials + done, 2 * trials)

    def _filled(self, study: optuna.Study, trials: int) -> Iterator[int]:
        """Fill a study up; how many trials there are after each."""
        while (done := len(study.get_trials(deepcopy=False))) < trials:
            trial = study.ask()
            _suggest(trial, self._scenario)
            figures = self._predicted(trial.params)
            values = (
                [_NEVER] * len(OBJECTIVES)
                if figures is None
                else [figures.of(name) for name in OBJECTIVES]
            )
            study.tell(trial, values)
            yield done + 1

    def _predicted(self, params: Mapping[str, Any]) -> Figures | None:
        said = predict(self._scenario, _policy(params, self._scenario), self._known)
        if said.verdict is Verdict.GIVE_UP:
            return None
        return Figures(said.downtime, said.total, float(said.bytes_wire))

    # ----------------------------------------------------------------- real runs

    def for_real(
        self,
        evaluate: Evaluate,
        budget: float,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Try the best of the model in turn, the scenario's own policy among them, until the time is up."""
        began = clock()
        chosen = self._chosen()
        while True:
            runs = self._runs()
            params = min(chosen, key=lambda each: len(runs.get(_key(each), [])))
            progress("real runs", int(clock() - began), int(budget))
            trial = self._real.ask()
            try:
                outcome = evaluate(_policy(params, self._scenario))
            except BaseException:
                self._real.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            trial.set_user_attr("params", dict(params))
            if outcome.downtime is None:
                trial.set_user_attr("error", outcome.error)
                self._real.tell(trial, [_NEVER] * len(OBJECTIVES))
            else:
                figures = Figures(outcome.downtime, outcome.total, float(outcome.bytes_wire))
                self._real.tell(trial, [figures.of(name) for name in OBJECTIVES])
            if clock() - began >= budget:
                return

    def _chosen(self) -> list[dict[str, Any]]:
        """The scenario's own, and the best by the model: those that keep the limit, by the objective."""
        limit = self._scenario.policy.downtime_limit
        found = [each for each in self._candidates() if each.predicted is not None]
        if not found:
            raise ConfigError(
                f"{self._scenario.name} would not migrate with any settings: see `vfioflow bench predict`"
            )

        def rank(each: Candidate) -> tuple[bool, float]:
            assert each.predicted is not None
            return each.predicted.downtime > limit, each.predicted.of(self._objective)

        best = sorted(found, key=rank)[:_CANDIDATES]
        keys = {_key(self._before): dict(self._before)}
        keys |= {_key(each.params): dict(each.params) for each in best}
        return list(keys.values())

    def _runs(self) -> dict[str, list[Figures | None]]:
        """Of each candidate that was tried: what came of it, None where it did not migrate."""
        runs: dict[str, list[Figures | None]] = {}
        for trial in self._real.get_trials(deepcopy=False):
            if trial.state is optuna.trial.TrialState.COMPLETE:
                values = trial.values
                figures = None if values[0] >= _NEVER else Figures(*values)
                runs.setdefault(_key(trial.user_attrs["params"]), []).append(figures)
        return runs

    # -------------------------------------------------------------------- result

    def _candidates(self) -> list[Candidate]:
        """All that were looked at, each once."""
        runs = self._runs()
        tried = {
            _key(trial.user_attrs["params"]): trial.user_attrs["params"]
            for trial in self._real.get_trials(deepcopy=False)
            if "params" in trial.user_attrs
        }
        looked_at = {
            _key(trial.params): trial.params
            for study in (self._even, self._model)
            for trial in study.get_trials(deepcopy=False)
            if trial.state is optuna.trial.TrialState.COMPLETE
        }
        found = []
        for key, params in {**looked_at, **tried, _key(self._before): self._before}.items():
            whole = [figures for figures in runs.get(key, []) if figures is not None]
            found.append(
                Candidate(
                    params,
                    _policy(params, self._scenario),
                    self._predicted(params),
                    _medians(whole),
                    len(whole),
                    len(runs.get(key, [])) - len(whole),
                )
            )
        return found

    def result(self) -> Tuned:
        """The best that was tried for real, or by the model where nothing was."""
        candidates = self._candidates()
        runs = sum(each.runs + each.failed for each in candidates)
        counted = [c for c in candidates if (c.runs if runs else True) and c.figures is not None]
        if not counted:
            raise ConfigError(f"{self._scenario.name} did not migrate with any settings")
        limit = self._scenario.policy.downtime_limit
        # One that failed now and then is no recommendation.
        good = [c for c in counted if _figures(c).downtime <= limit and not c.failed]
        if good:
            recommended = min(good, key=lambda c: _figures(c).of(self._objective))
        else:
            recommended = min(counted, key=lambda c: (c.failed, _figures(c).downtime))
        before = next(c for c in candidates if _key(c.params) == _key(self._before))
        return Tuned(
            self._scenario,
            self._objective,
            before,
            recommended,
            bool(good),
            _front(counted),
            self._importances(),
            len(self._even.trials) + len(self._model.trials),
            runs,
        )

    def _importances(self) -> Mapping[str, float]:
        index = OBJECTIVES.index(self._objective)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that less is better; so it is
            found = get_param_importances(
                self._even,
                evaluator=PedAnovaImportanceEvaluator(),
                target=lambda trial: trial.values[index],
            )
        return dict(sorted(found.items(), key=lambda each: -each[1]))


def _front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    found = {
        (_figures(c).downtime, _figures(c).total, _figures(c).bytes): c
        for c in candidates
        if not any(_figures(other).beats(_figures(c)) for other in candidates)
    }
    return tuple(found[key] for key in sorted(found))


def _figures(candidate: Candidate) -> Figures:
    assert candidate.figures is not None
    return candidate.figures


def _medians(runs: Sequence[Figures]) -> Figures | None:
    if not runs:
        return None
    return Figures(*(median(each.of(name) for each in runs) for name in OBJECTIVES))


# ------------------------------------------------------------------------ settings


_COMPRESSIONS = ("none", "auto", "zstd:1", "zstd:-5")


def _suggest(trial: optuna.Trial, scenario: Scenario) -> None:
    """A choice of settings.  ``threshold``: the share of the downtime limit that is aimed at."""
    trial.suggest_float("threshold", 0.2, 1.0)
    trial.suggest_int("channels", 1, _most_channels(scenario))
    trial.suggest_int("chunk_bits", 16, 22)
    trial.suggest_categorical("compression", _COMPRESSIONS)
    trial.suggest_int("max_iterations", 5, 1000, log=True)


def _most_channels(scenario: Scenario) -> int:
    return min(max(2 * len(scenario.devices), 8), 16)


def _policy(params: Mapping[str, Any], scenario: Scenario) -> Policy:
    base = scenario.policy
    return replace(
        base,
        downtime_limit=round(base.downtime_limit * params["threshold"], 4),
        channels=params["channels"],
        chunk_size=2 ** params["chunk_bits"],
        compression=params["compression"],
        max_iterations=params["max_iterations"],
    )


def _params_of(policy: Policy, scenario: Scenario) -> dict[str, Any]:
    """The nearest that there is to the scenario's own policy."""
    return {
        "threshold": 1.0,
        "channels": min(policy.channel_count(len(scenario.devices)), _most_channels(scenario)),
        "chunk_bits": min(max(policy.chunk_size.bit_length() - 1, 16), 22),
        "compression": policy.compression if policy.compression in _COMPRESSIONS else "none",
        "max_iterations": min(max(policy.max_iterations, 5), 1000),
    }


def _key(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))
