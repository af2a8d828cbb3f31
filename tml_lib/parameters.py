"""What the notebooks' parameters may be, beside their types: one table by name, for a name means
the same in all notebooks, and the few exceptions. Nothing of torch is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tml_lib import files


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`, both included."""

    least: float
    most: float = math.inf
    odd: bool = False

    @property
    def allowed(self) -> str:
        limits = f"from {self.least:.10g} to {self.most:.10g}"
        if self.most == math.inf:
            limits = f"of at least {self.least:g}"
        return f"{'an odd' if self.odd else 'a'} number {limits}"

    def refusal(self, value: float, base: Path) -> str:
        """Why the value is not allowed; '' where it is. NaN and infinity never are."""
        fits = self.least <= value <= self.most and value != math.inf
        return "" if fits and not (self.odd and value % 2 == 0) else "it is out of range"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    choices: tuple[str | bool, ...]

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"

    def refusal(self, value: str, base: Path) -> str:
        """Why the value is not allowed; '' where it is."""
        return "" if value in self.choices else "it is none of the known ones"


@dataclass(frozen=True)
class Found:
    """What `find` looks up, such as a folder; or one of `words`."""

    allowed: str
    # (value, folder that relative paths begin from) -> why there is nothing to use; '' where it is
    find: Callable[[str, Path], str]
    words: tuple[str, ...] = ("",)

    def refusal(self, value: str, base: Path) -> str:
        """Why the value is not allowed; '' where it is."""
        return "" if value in self.words else self.find(value, base)


@dataclass(frozen=True)
class Budget(Number):
    """A number, or 0 for what the preset has time for (BUDGETS)."""

    @property
    def allowed(self) -> str:
        return f"{super().allowed}, or 0 for the preset's"

    def refusal(self, value: float, base: Path) -> str:
        """Why the value is not allowed; '' where it is."""
        return "" if value == 0 else super().refusal(value, base)


Rule = Number | Choice | Found


def _holding(path: Path, file: str) -> str:
    if not path.is_dir():
        return f"there is no folder {path}"
    return "" if (path / file).is_file() else f"the folder {path} has no {file}"


def _names(room: str, file: str, part: str) -> list[str]:
    """The names of a committed table's entries."""
    path = Path(__file__).parent / room / file
    return [entry["name"] for entry in files.table(path, files.COMMITTED, {part: list})[part]]


def _model(value: str, base: Path) -> str:
    path = base / Path(value).expanduser()
    if path.is_dir() or value.startswith((".", "/", "~")):
        return _holding(path, "config.json")
    if value in _names("lm", "weights.toml", "weights"):
        return ""  # whether it is fetched, `models.load` says
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(value, "config.json"), str):
            # one request: a download tries again for minutes where there is no network
            HfApi().model_info(value, timeout=3)
    # what the hub's client raises depends on the name, the network and the login
    except Exception as error:
        return f"it is no folder, and no model that the hub gives here ({type(error).__name__})"
    return ""


def _adapter(value: str, base: Path) -> str:
    return _holding(base / Path(value).expanduser(), "adapter_model.safetensors")


def _data(value: str, base: Path) -> str:
    name, equals, place = value.partition("=")
    if name not in SETS:
        return f"{name!r} is no question set that is read here"
    if name == "own" and not place:
        return "it names no file"
    if not equals or (base / Path(place).expanduser()).exists():
        return ""
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place) and not Path(place).suffix
    return "" if is_hub_name else f"{place!r} does not exist"


def _folder(value: str, base: Path) -> str:
    path = base / Path(value).expanduser()
    return "" if path.is_dir() else f"there is no folder {path}"


def _entry(value: str, base: Path) -> str:
    names = _names("claims", "published.toml", "models")
    return "" if value in names else f"the entries are {', '.join(names)}"


PATHS = ("model", "llm", "adapter", "data", "evidence_dir")
# By preset, what a notebook's live part does where its parameter is 0. A sample of 400 tokens of
# `medium` takes two minutes, and each of its tokens a tenth of a second to probe.
BUDGETS: dict[str, dict[str, int]] = {
    "small": {"n_questions": 3, "stride": 4, "grid": 5, "n_close": 1},
    "medium": {"n_questions": 2, "stride": 8, "grid": 3, "n_close": 1},
    "gpu": {"n_questions": 8, "stride": 4, "grid": 9, "n_close": 4},
    "tiny": {"n_questions": 60, "stride": 1, "grid": 13, "n_close": 40},
}
PRESETS = tuple(BUDGETS)
SETS = ("orz_14b", "orz_72b", "aime24", "math500_5", "livemathbench_hard", "gpqa_diamond", "own")
MODEL = (
    "a folder with config.json (as `save_pretrained` writes it), a name that `python -m tml_lib"
    " fetch --list` shows, or the name of a hub model"
)

NONE_OR_MORE, ONE_OR_MORE = Number(0), Number(1)
RULES: dict[str, Rule] = {
    "preset": Choice(PRESETS),
    "model": Found(f"{MODEL}, or '' for the preset's", _model, ("", "embedded")),
    "llm": Found(f"'small', 'medium', {MODEL}", _model, ("small", "medium", "gpu")),
    "adapter": Found(
        "'stored', a folder with adapter_model.safetensors, or ''", _adapter, ("", "stored")
    ),
    "data": Found(f"one of {', '.join(SETS)}, alone or with =FOLDER, or '' for none", _data),
    "evidence_dir": Found("a folder that exists (`mkdir -p` makes one), or ''", _folder),
    "entry": Found("the name of an entry in tml_lib/claims/published.toml", _entry, ()),
    "seed": Number(0, 2**31 - 1),
    "near": NONE_OR_MORE,
    "place": Number(0, 1000),  # of a question: as many are drawn
    "grid": Number(3, odd=True),
    "update": Number(1, 16),  # samples of a group of 16
    "statements": Number(1, 7),  # of a chain: a program has 16 letters for two chains
    "n_probed": Number(1, 256),  # the tasks that a seed is measured on
    "small_lr": Number(1e-6, 1e3),
    "large_lr": Number(1e-6, 1e3),
    "lora_rank": NONE_OR_MORE,
    "tries": NONE_OR_MORE,
    "n_close": ONE_OR_MORE,
    "thinking": Choice((True, False)),
    "layers": Choice(("last", "all")),
}
RULES |= dict.fromkeys(("study_seeds", "tiny_seeds", "study_questions"), NONE_OR_MORE)
RULES |= {
    "llm_questions": NONE_OR_MORE,
    "stride": ONE_OR_MORE,
    "max_tokens": NONE_OR_MORE,
    "most_tokens": NONE_OR_MORE,
}
_COUNTS = ("n_questions", "n_groups", "n_pairs", "batch", "simulated_exams")
_STEPS = "steps live_steps study_steps sft_steps cold_steps meta_steps optimiser_steps train_steps"
RULES |= dict.fromkeys((*_COUNTS, *_STEPS.split(), "outer_steps"), ONE_OR_MORE)

# A notebook is known by the names that it declares: a running one does not know its own file.
_TEXT = Choice(("small", "medium", "gpu"))
_BUDGET = {"n_questions": Budget(1), "stride": Budget(1), "grid": Budget(3, odd=True)}
_BUDGET |= {"n_close": Budget(1)}


def _budgets(*names: str) -> dict[str, Rule]:
    return {name: _BUDGET[name] for name in names}


EXCEPTIONS: dict[str, dict[str, Rule]] = {
    "preset model seed": {"preset": _TEXT},
    "preset model adapter data thinking seed": {"preset": _TEXT},
    "preset model n_questions stride layers tiny_seeds seed evidence_dir": {
        "preset": _TEXT,
        "n_questions": NONE_OR_MORE,  # 0 leaves the live study out
    },
    "preset model adapter data n_questions stride tries thinking max_tokens seed evidence_dir": {
        "preset": _TEXT,
        **_budgets("n_questions", "stride"),
    },
    "preset model adapter data place stride tries thinking max_tokens seed": {
        "preset": _TEXT,
        **_budgets("stride"),
    },
    "preset model n_questions grid stride study_seeds seed evidence_dir": _budgets(
        "n_questions", "grid", "stride"
    ),
    (
        "preset model adapter data n_questions n_close study_seeds thinking max_tokens seed"
        " evidence_dir"
    ): _budgets("n_questions", "n_close"),
    "preset model adapter data n_questions study_seeds thinking max_tokens seed evidence_dir": (
        _budgets("n_questions")
    ),
    "preset model live_steps most_tokens study_questions study_steps seed evidence_dir": {
        "preset": _TEXT
    },
    "outer_steps batch statements n_pairs small_lr large_lr lora_rank seed": {
        "lora_rank": ONE_OR_MORE  # the adapter is all that the loops move
    },
}


def rule(name: str, declared: Sequence[str]) -> Rule | None:
    """What a parameter may be in the notebook that declares these names, in this order; None for a
    name of a reader's own.
    """
    return EXCEPTIONS.get(" ".join(declared), {}).get(name) or RULES.get(name)


def budget(values: Mapping[str, object], declared: Sequence[str]) -> dict[str, object]:
    """The values, with those that are 0 for the preset's as the preset has them."""
    own = BUDGETS.get(values.get("preset"), {})
    return {
        name: own[name] if value == 0 and isinstance(rule(name, declared), Budget) else value
        for name, value in values.items()
    }


def check(values: Mapping[str, object], declared: Sequence[str], base: Path) -> None:
    """Raise ValueError at the first value that is not allowed, with what is allowed. Types are
    checked before. base: the folder that relative paths begin from.
    """
    for name, value in values.items():
        found = rule(name, declared)
        if found and (reason := found.refusal(value, base)):
            raise ValueError(
                f"parameter {name}={value!r}: {reason}; give {found.allowed}, in the parameters"
                f" cell or with `-p {name} VALUE`"
            )
    for name in ("adapter", "data"):
        if values.get("preset") == "tiny" and values.get(name):
            raise ValueError(
                f"parameter {name}={values[name]!r} is for text, and preset 'tiny' reads programs:"
                f" give preset 'small', 'medium' or 'gpu', or leave {name} empty"
            )


def expanded(name: str, value: object, here: Path | None = None) -> object:
    """The value with ~ as the home folder, where the parameter takes a path; with `here`, a path
    that exists from there is absolute, as notebooks run in a folder of their own.
    """
    if name not in PATHS or not value or not isinstance(value, str):
        return value
    start, equals, place = value.rpartition("=") if name == "data" else ("", "", value)
    path = Path(place).expanduser()
    if here is not None and place and not path.is_absolute() and (here / path).exists():
        path = here / path
    return start + equals + (str(path) if path.is_absolute() else place)
