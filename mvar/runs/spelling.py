"""A config in the spelling in which it is stored already: one folder has many names, a run and a stage have one id."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from mvar import layout
from mvar.config import EvaluationConfig, RunConfig, from_dict
from mvar.config.parsing import Stored
from mvar.errors import UserError
from mvar.files import read_json
from mvar.runs.index import RunIndex

SCIENCE = ("seed", "data", "tokenizer", "model", "train")  # sections of a config that make the run


class StoredRun(Protocol):
    """What is asked of a run's directory."""

    def stored(self) -> Stored:
        """Its config."""
        ...

    def evaluations(self) -> dict[str, Any]:
        """Its finished evaluations."""
        ...


def is_short_for(name: str, run_id: str) -> bool:
    """Whether a name is some of the parts of an id, in their order, as `mvar status` shortens ids to what differs."""
    parts = iter(run_id.split("-"))
    return all(part in parts for part in name.split("-"))


def of_run(config: RunConfig, run: StoredRun) -> RunConfig:
    """Spelled as the same run is that a directory holds."""
    stored = run.stored().config
    science = {name: getattr(stored, name) for name in SCIENCE}
    return of_evaluation(config.model_copy(update=science), run)


def of_stages(config: RunConfig, index: RunIndex, run: Callable[[str], StoredRun]) -> RunConfig:
    """Of a run that is yet to be made: data, tokenizer and evaluation spelled as other runs and stages have them."""
    canonical = config.canonical()
    for sections in (("data", "tokenizer"), ("data",)):
        if folder := index.spelled(canonical, *sections):
            document = read_json(folder / layout.CONFIG)
            found = {name: from_dict(type(getattr(config, name)), document[name], lenient=True) for name in sections}
            config = config.model_copy(update=found)
            break
    if any(_files(config.evaluation).values()) and (folder := index.spelled(canonical, "evaluation")):
        if folder.parent.name == layout.RUNS:
            return of_evaluation(config, run(folder.name))
        document = read_json(folder / layout.CONFIG)
        return _judged_by(config, from_dict(EvaluationConfig, document["evaluation"], lenient=True))
    return config


def of_evaluation(config: RunConfig, run: StoredRun) -> RunConfig:
    """With its evaluation spelled as a run has it, in its config or in one that it has made."""
    if not any(_files(config.evaluation).values()):  # nothing in it has two spellings
        return config
    wanted = config.canonical()["evaluation"]
    with suppress(UserError):
        stored = [run.stored().config.evaluation]
        made = [record["evaluation"] for record in run.evaluations().values() if "evaluation" in record]
        for evaluation in [*stored, *(from_dict(EvaluationConfig, values, lenient=True) for values in made)]:
            spelled = _judged_by(config, evaluation)
            if spelled.canonical()["evaluation"] == wanted:
                return spelled
    return config


def _judged_by(config: RunConfig, other: EvaluationConfig) -> RunConfig:
    """With the paths of another evaluation; settings of metrics, which no stored config has, stay."""
    evaluation = config.evaluation.model_copy(update=_files(other))
    return config.model_copy(update={"evaluation": evaluation})


def _files(evaluation: EvaluationConfig) -> dict[str, str | None]:
    """The paths that an evaluation names."""
    return {"inception_weights": evaluation.inception_weights, "reference": evaluation.reference}
