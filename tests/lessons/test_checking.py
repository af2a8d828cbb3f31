"""Checkers tell a learner why an attempt stopped, and hide no error of their own."""

import importlib

import pytest

from tml_lib.lessons.exercises import checking

MODULES = (
    "theory",
    "toy_maml",
    "gradient_descent_written_out",
    "the_tiny_reasoner",
    "landscape_and_path",
    "lora_outer_loop",
    "support_set_size",
    "generalisation",
    "preference_and_reward",
    "explicit_inner_loop",
    "published_models",
    "replication_report",
)
CHECKERS = [
    (module, name)
    for module in MODULES
    for name in vars(importlib.import_module(f"tml_lib.lessons.exercises.{module}"))
    if name.startswith("check_") and name != "check_support_size"  # its attempt is a dictionary
]


@pytest.mark.parametrize(("module", "name"), CHECKERS)
@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda *_: undefined, "NameError: name 'undefined' is not defined"),  # noqa: F821
        (lambda *_: None, "your function returns None"),
    ],
)
def test_a_learners_own_error_is_told_in_one_line(module, name, attempt, says, capsys):
    check = getattr(importlib.import_module(f"tml_lib.lessons.exercises.{module}"), name)
    assert check(attempt) is False
    said = capsys.readouterr().out
    assert said.startswith("not yet: ")
    assert says in said
    assert said.count("\n") == 1


def test_a_checkers_own_error_is_raised():
    @checking.checker
    def check(attempt):
        return attempt() / 0

    with pytest.raises(ZeroDivisionError):
        check(lambda: 1)


def test_a_checker_may_explain_the_attempts_error_itself(capsys):
    @checking.checker
    def check(attempt):
        try:
            return attempt()
        except ValueError:
            return checking.say("the shapes", False)

    def attempt():
        raise ValueError

    assert check(attempt) is False
    assert capsys.readouterr().out == "the shapes\n"
