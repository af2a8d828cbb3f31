"""C13: every number stands in its quote; values by hand; errors of a bad entry; the figure;
checkers of the exercises.
"""

import json
import re
from dataclasses import asdict

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from tml_lib.claims import ledger, rulebook, stats
from tml_lib.lessons import notebooks, plots
from tml_lib.lessons.exercises import published_models
from tml_lib.studies import published
from tml_lib.studies.published import Published

matplotlib.use("Agg")
MODELS = published.models()
NAMES = {
    "Qwen2.5-32B",
    "Qwen2.5-32B-Instruct",
    "Sky-T1-32B-Preview",
    "Sky-T1-32B-Flash",
    "Bespoke-Stratos-32B",
    "LIMO",
    "s1-32B",
    "s1.1-32B",
    "OpenThinker-32B",
    "OpenThinker2-32B",
    "Light-R1-32B",
    "DeepSeek-R1-Distill-Qwen-32B",
    "DAPO",
    "VAPO",
    "DeepSeek-R1-Zero-Qwen-32B",
    "Open-Reasoner-Zero-32B",
}
each_model = pytest.mark.parametrize("m", MODELS, ids=lambda m: m.name)
GOOD = """
[[models]]
name = "a"
base = "b"
group = "off-policy"
accuracy = 0.567
metric = "avg@32"
source = "https://example.org"
quote = "56.7"
"""


def test_every_model_of_the_figure_is_there():
    assert {m.name for m in MODELS} == NAMES


@each_model
def test_an_accuracy_stands_in_its_quote_in_a_usual_spelling(m):
    assert (m.accuracy is None) == bool(m.missing)
    if m.accuracy is not None:
        percent = 100 * m.accuracy
        assert re.search(rf"(?<![\d.])({percent:.1f}|{percent:g})(?![\d.]*\d)", m.quote), m.quote
        assert m.source.startswith("https://")


@each_model
def test_a_size_stands_in_its_quote_or_is_the_sum_of_its_numbers(m):
    if size := m.questions or m.samples:
        found = re.findall(r"(?<![\w.])(\d[\d,]*)([kKM]?)\b", m.size_quote)
        sizes = [
            int(digits.replace(",", "")) * {"k": 1000, "m": 10**6}.get(unit.lower(), 1)
            for digits, unit in found
        ]
        assert size in (*sizes, sum(sizes))
        assert m.size_source.startswith("https://")


@each_model
def test_what_a_mean_of_runs_and_a_choice_of_group_rest_on_is_said(m):
    if m.runs and m.runs > 1:
        assert f"avg@{m.runs}" in m.metric
    if m.runs == 1:
        assert m.metric.startswith("pass@1")
    assert m.note
    assert all(set(other) == {"accuracy", "source", "what"} for other in m.others)


def test_repeats_are_counts_of_thirty_questions():
    for row in published.repeats():
        assert row["name"] in NAMES
        assert row["source"].startswith("https://")
        assert len(row["right"]) >= 10
        assert all(0 <= count <= published.AIME_QUESTIONS for count in row["right"])


def made(name, group, accuracy, questions=None):
    return Published(name, "x", group, accuracy, questions=questions)


BY_HAND = [
    made("a", "off-policy", 0.5, 100),
    made("b", "off-policy", 0.6, 1000),
    made("c", "off-policy", 0.9, 1001),
    made("d", "off-policy", 0.7),
    made("e", "on-policy", 0.4, 1000),
    made("f", "on-policy", 0.2, 10**6),
    made("g", "on-policy", 0.8),
    made("h", "both", 0.99, 1),
    made("i", "base", 0.1),
    Published("j", "x", "on-policy", missing="nobody says", questions=10),
]


def test_values_by_hand():
    found = {test: np.asarray(x) for test, x in published.estimands(BY_HAND).items()}
    assert found["C13.over_best"] == pytest.approx([0.1, 0.2])
    assert found["C13.over_mean"] == pytest.approx([0.2, 0.3])
    assert found["C13.any_size_over_best"] == pytest.approx([-0.3, -0.2, 0.1, -0.1])
    assert set(found) == {f"C13.{test['name']}" for test in rulebook.claims()["C13"]["tests"]}
    on, off = published.matched(BY_HAND)
    assert [m.name for m in on] == ["e", "f"]
    assert [m.name for m in off] == ["a", "b"]


def test_without_a_sized_on_policy_model_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="nothing to compare with"):
        published.estimands(BY_HAND[:4] + BY_HAND[6:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'group = "off-policy"',
            'group = "offline"',
            "model 'a' has group 'offline': choose among",
        ),
        ("accuracy = 0.567", "", "model 'a' needs an accuracy or, in its place"),
        ("accuracy = 0.567", 'accuracy = 0.567\nmissing = "why"', "give one of the two"),
        ("accuracy = 0.567", "accuracy = 56.7", "write it as a share"),
        ('metric = "avg@32"', "", "add what is lacking"),
        ('quote = "56.7"', f'quote = "{"56.7 " * 50}"', "shorten it"),
        ("https://", "http://", "give an https address"),
        ('quote = "56.7"', 'quote = "56.7"\nquestions = 9', "size without its source"),
        (
            'quote = "56.7"',
            (
                'quote = "56.7"\nquestions = 9\nsamples = 9\nsize_source ='
                ' "https://x.org"\nsize_quote = "9"'
            ),
            "keep the number",
        ),
        ('base = "b"', "", "model 'a' lacks 'base': add it"),
        ('name = "a"', "", "model 'number 1' lacks 'name'"),
        ('base = "b"', 'base = "b"\nacuracy = 1', "unknown field 'acuracy': use accuracy"),
        ('quote = "56.7"', f'quote = "56.7"\n{GOOD}', "model 'a' stands there twice: keep one"),
        (
            'quote = "56.7"',
            'quote = "56.7"\n[[models.others]]\naccuracy = 3\nsource = "https://x.org"',
            "write it as a share",
        ),
    ],
)
def test_a_bad_entry_is_named_with_the_reason_and_the_next_step(tmp_path, old, new, message):
    path = tmp_path / "published.toml"
    path.write_text(GOOD)
    assert published.models(path)[0].accuracy == 0.567
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        published.models(path)


def test_evidence_holds_the_values_and_all_that_the_figure_needs(tmp_path):
    record = ledger.read_evidence(published.write_evidence(tmp_path, "made by a test", 0.1))
    values = {name: seeds[0] for name, seeds in record["values"].items()}
    assert values == {
        name: pytest.approx(numbers, abs=1e-5)
        for name, numbers in published.estimands(MODELS).items()
    }
    assert record["models"] == json.loads(json.dumps([asdict(m) for m in MODELS]))
    verdicts = {row.test: row.verdict for row in ledger.rows([tmp_path])}
    assert set(verdicts) == {test["name"] for test in rulebook.claims()["C13"]["tests"]}
    assert not {"stale", "too few"} & set(verdicts.values())


def test_the_stored_evidence_is_of_the_file_as_it_stands():
    stored = ledger.read_evidence(notebooks.stored_evidence() / "published.published.json")
    assert stored["models"] == json.loads(json.dumps([asdict(m) for m in MODELS])), (
        "run notebook 16 and store its evidence"
    )


def test_the_figure_draws_every_model_and_keeps_names_apart():
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    plots.published_models(
        ax,
        [*map(asdict, MODELS), asdict(Published("none", "x", "off-policy", missing="no source"))],
    )
    figure.draw_without_rendering()
    assert {text.get_text() for text in ax.texts} == NAMES
    drawn = [y for line in ax.lines for y in np.atleast_1d(line.get_ydata())]
    for m in MODELS:
        assert any(y == pytest.approx(m.accuracy) for y in drawn), m.name
    boxes = [text.get_window_extent() for text in ax.texts]
    for k, box in enumerate(boxes):
        assert ax.bbox.x0 <= box.x0
        assert box.x1 <= ax.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:k]), ax.texts[k].get_text()
    plt.close(figure)


def error(p, runs):
    return np.sqrt(np.sum(p * (1 - p)) / runs) / len(p)


def test_the_error_of_an_average_is_that_of_simulated_runs():
    p, rng = np.linspace(0.05, 1, 30), np.random.default_rng(0)
    drawn = rng.binomial(8, p, size=(20000, 30)).mean(1) / 8
    assert error(p, 8) == pytest.approx(drawn.std(), rel=0.03)


def differences(models, keep=lambda m, best: m.questions <= best.questions, group=("off-policy",)):
    on = [m for m in models if m.group == "on-policy" and m.questions is not None]
    best = max(on, key=lambda m: m.accuracy)
    return [
        m.accuracy - best.accuracy
        for m in models
        if m.group in group and m.questions and keep(m, best)
    ]


def over(models, bar):
    return [
        m.accuracy - bar
        for m in models
        if m.group == "off-policy" and m.questions and m.questions <= 1000
    ]


AVERAGED = [
    (None, None, "not attempted"),
    (error, True, "right: and with all p equal"),
    (lambda p, k: np.sqrt(p.mean() * (1 - p.mean()) / len(p) / k), False, "equally hard"),
    (lambda p, k: error(p, 1), False, "a mean of more runs varies less"),
    (lambda p, k: error(p, 1) / k, False, "its root with the root of runs"),
    (lambda p, k: error(p, k) ** 2, False, "take its root"),
    (lambda p, k: error(p, k) * len(p), False, "divides it by n"),
    (lambda p, k: error(p, k) * np.sqrt(len(p)), False, "of one question"),
    (lambda p, k: p.std() / np.sqrt(len(p)), False, "only answers vary"),
    (lambda p, k: stats.bootstrap_interval(p, seed=0).high, False, "simulated runs"),
]
MATCHED = [
    (None, None, "not attempted"),
    (differences, True, "moved the bar"),
    (lambda models: [-x for x in differences(models)], False, "the other way round"),
    (lambda models: over(models, 0.5), False, "not the mean"),
    (lambda models: over(models, 0.7), False, "however good"),
    (lambda models: differences(models, lambda m, best: True), False, "no more questions"),
    (
        lambda models: differences(models, lambda m, best: m.questions < best.questions),
        False,
        "use <=",
    ),
    (lambda models: differences(models, group=("off-policy", "both")), False, "belongs to neither"),
    (
        lambda models: [x + 0.1 for x in differences(models, lambda m, best: True)],
        False,
        "the most accurate one",
    ),
    (lambda models: [], False, "expected are 2 numbers"),
]


@pytest.mark.parametrize(
    ("check", "case"),
    [(published_models.check_averaged_error, case) for case in AVERAGED]
    + [(published_models.check_matched, case) for case in MATCHED],
)
def test_checkers_tell_right_from_wrong_and_why(check, case, capsys):
    attempt, right, says = case
    assert check(attempt) is right
    assert says in capsys.readouterr().out
