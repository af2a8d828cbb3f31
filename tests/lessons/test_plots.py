"""Figures draw what they are given."""

from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.display import DisplayHandle

from tml_lib.claims.ledger import Row
from tml_lib.lessons import names, plots
from tml_lib.lessons.plots import outer_loop
from tml_lib.records import Interval, Landscape, ProbeCurve

matplotlib.use("Agg")


@pytest.fixture
def curve():
    tokens = ("6", " *", " 7", "\n", "=", " 42")
    return ProbeCurve(
        np.arange(7), np.array([3.0, 3.1, 2.5, 2.6, 2.4, 0.5, 0.1]), 6, "42", tokens, stated_at=5
    )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_curve_draws_the_values_and_the_statement(curve):
    ax = plots.curve(plt.figure().add_subplot(), curve, smoothing=0.5)
    drawn = [line.get_ydata() for line in ax.lines]
    np.testing.assert_array_equal(drawn[0], curve.answer_nll)
    assert drawn[1][1] == pytest.approx(3.05)
    assert ax.lines[2].get_xdata()[0] == 5
    assert "nats per token" in ax.get_ylabel()


@pytest.mark.parametrize("panels", [1, 2])
def test_a_second_curve_that_is_higher_is_seen_whole(curve, panels):
    _, axes = plt.subplots(1, panels, sharey=True, squeeze=False)
    for ax, height in ((axes[0, 0], 1), (axes[0, -1], 4)):
        plots.curve(ax, replace(curve, answer_nll=height * curve.answer_nll))
    for ax in axes[0]:
        low, high = ax.get_ylim()
        assert low == 0
        assert high > 4 * curve.answer_nll.max()


def test_token_heat_colours_falls_blue_and_rises_red(curve):
    figure = plots.token_heat(curve)
    boxes = figure.axes[0].patches
    assert len(boxes) == 6
    rise, fall = boxes[0].get_facecolor(), boxes[4].get_facecolor()
    assert rise[0] > rise[2]
    assert fall[2] > fall[0]


def test_token_heat_needs_every_position(curve):
    thin = ProbeCurve(curve.positions[::2], curve.answer_nll[::2], 6, "42", curve.tokens)
    with pytest.raises(ValueError, match="4 of 7 positions: probe with stride=1"):
        plots.token_heat(thin)


def test_bands_show_the_mean_over_questions(curve):
    higher = ProbeCurve(curve.positions, curve.answer_nll + 1, 6, "42")
    ax = plots.bands(plt.figure().add_subplot(), {"gold": [curve, higher]}, points=7)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), curve.answer_nll + 0.5)
    assert "n = 2" in ax.get_legend().get_texts()[0].get_text()


def test_differences_are_paired_by_question(curve):
    higher = ProbeCurve(curve.positions, curve.answer_nll + 0.25, 6, "42")
    ax = plots.differences(plt.figure().add_subplot(), {"foreign": [(curve, higher)] * 2}, points=5)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), -0.25)
    assert "gold minus another question's trajectory" in ax.get_legend().get_texts()[0].get_text()


def test_forest_marks_estimates_and_verdicts():
    row = Row(
        "C1", "trend", "small", "e", "tau", -0.3, -0.4, -0.2, 1, 64, "c", True, "holds", "f.json"
    )
    ax = plots.forest([row]).axes[0]
    assert ax.get_yticklabels()[0].get_text() == (
        "trend of L̂ over the whole gold trajectory\nclaimed below -0.1 tau: holds (small, trend)"
    )
    assert [text.get_text() for text in ax.texts if "(C1)" in text.get_text()] == [
        "L̂ falls along correct trajectories (C1)"
    ]
    assert -0.3 in [line.get_xdata()[0] for line in ax.lines]


def test_intervals_show_every_name_from_top_to_bottom():
    rows = {"first": Interval(1.0, 0.5, 2.0, 9), "second": Interval(-1.0, -1.5, -0.5, 9)}
    ax = plots.intervals(plt.figure().add_subplot(), rows, xlabel="nats")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.lines[0].get_xdata().tolist() == [0.5, 2.0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_intervals_of_a_group_have_its_names_and_colours():
    rows = {"short": Interval(0.1, 0.0, 0.2, 9), "long": Interval(0.3, 0.2, 0.4, 9)}
    ax = plots.intervals(plt.figure().add_subplot(), rows, names.ARMS, xlabel="share")
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        names.ARMS[arm].name for arm in rows
    ]
    assert [line.get_color() for line in ax.lines[1:4:2]] == [
        names.ARMS[arm].colour for arm in rows
    ]


def test_shares_have_a_mark_per_key_in_each_group_and_one_legend_entry():
    one, other = Interval(0.1, 0.0, 0.2, 9), Interval(0.3, 0.2, 0.4, 9)
    rows = {"greedy": {"base": one, "long": other}, "a sample": {"base": other}}
    ax = plots.shares(plt.figure().add_subplot(), rows, names.ARMS, ylabel="share", chance=0.02)
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in marks] == [0.1, 0.3, 0.3]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        names.ARMS["base"].name,
        names.ARMS["long"].name,
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(rows)


def test_a_key_without_an_entry_is_refused_by_name():
    table = np.zeros((2, 2))
    with pytest.raises(ValueError, match="'longer' has no name and colour among base, "):
        plots.seed_bands(plt.figure().add_subplot(), [0, 1], {"longer": table}, names.ARMS)


def test_by_layer_draws_means_over_questions():
    table = np.arange(24.0).reshape(2, 3, 4)
    figure = plots.by_layer({"size": table, "rank": table[:1]}, ["a", "b", "c"])
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == table.mean(0).tolist()
    assert len(figure.axes[0].collections) == 1  # a band over questions
    assert len(figure.axes[1].collections) == 0  # none for a single one
    assert figure.axes[1].get_ylabel() == "rank"


def test_token_path_puts_steps_at_the_token_that_makes_them():
    axes = plt.figure().subplots(2)
    plots.token_path(
        axes,
        {
            "gold": {
                "answer_nll": [[2.0, 1.0, 0.0], [4.0, 3.0, 0.0]],
                "cosine": [[0.1, 0.2], [0.3, 0.4]],
            }
        },
    )
    assert axes[0].lines[2].get_ydata().tolist() == [3.0, 2.0, 0.0]
    assert axes[0].lines[2].get_xdata().tolist() == [0, 1, 2]
    np.testing.assert_allclose(axes[1].lines[2].get_ydata(), [0.2, 0.3])
    assert axes[1].lines[2].get_xdata().tolist() == [1, 2]


def test_the_idea_names_both_loops():
    words = " ".join(text.get_text() for ax in plots.idea().axes for text in ax.texts)
    assert "outer loop" in words
    assert "token t₁" in words


def test_seed_bands_show_means_over_seeds_and_tell_lines_apart():
    tables = {"long": np.array([[1.0, 2.0], [3.0, 4.0]]), "short": np.array([[0.0, 1.0]])}
    ax = plots.seed_bands(plt.figure().add_subplot(), [0, 1], tables, names.ARMS)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 3])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0, 1])
    assert len(ax.collections) == 1, "a single seed has no band"
    styles = [(line.get_color(), line.get_linestyle()) for line in ax.lines[:2]]
    assert styles == [(names.ARMS[arm].colour, names.ARMS[arm].dash) for arm in tables]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "SFT, long trajectories",
        "SFT, short trajectories",
        "95 % band, 1 or 2 seeds",
    ]


def test_a_surface_has_its_scale_and_a_path_its_ends():
    found = Landscape(
        np.linspace(-1, 1, 3), np.linspace(-2, 2, 5), np.arange(15.0).reshape(3, 5, 1)
    )
    ax = plots.surface(plt.figure().add_subplot(), found, ends=(0, 9))
    assert "nats per token" in ax.figure.axes[1].get_ylabel()
    assert ax.collections[0].levels[[0, -1]].tolist() == [0, 9]
    points = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 2.0]])
    plots.path_on(ax, points, stated_at=1)
    starts = [line.get_xydata()[0].tolist() for line in ax.lines]
    assert starts == [[0, 0], [0, 0], [0, 0], [0.5, 1], [1, 2]]


def test_relative_changes_are_drawn_by_class_and_absent_classes_left_out():
    rows = [["Wait", 2.0, 1.0], ["other", 1.0, 1.1], ["other", 0.01, 0.1]]
    ax = plots.relative_changes(plt.figure().add_subplot(), rows, ("Wait", "Hold on"))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["all other tokens (n = 2)", "Wait (n = 1)"]
    np.testing.assert_allclose(ax.collections[1].get_offsets(), [[2.0, 0.5]])
    np.testing.assert_allclose(ax.collections[0].get_offsets()[1], [0.01, 9.0])


def test_rewards_are_drawn_with_their_average_and_live_ones_redrawn(monkeypatch):
    keys = ("reward", "frac_reward_zero_std", "completions/mean_length", "entropy")
    log = [
        {"step": step, **{key: float(step + place) for place, key in enumerate(keys)}}
        for step in (1, 2)
    ]
    figure = plots.rewards([*log, {"step": 2, "train_loss": 0.0}])
    assert "nats per token" in figure.axes[3].get_ylabel()
    for place, ax in enumerate(figure.axes):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [1 + place, 2 + place])
        np.testing.assert_allclose(ax.lines[1].get_ydata(), [1 + place, 1.3 + place])
    assert not plots.rewards([]).axes[0].lines[0].get_xdata().size
    shown = []
    monkeypatch.setattr(
        outer_loop, "display", lambda figure, display_id: shown.append(figure) or DisplayHandle("x")
    )
    monkeypatch.setattr(DisplayHandle, "update", lambda self, figure: shown.append(figure))
    show = plots.live_rewards()
    show(log[:1])
    show(log)
    assert len(shown) == 1, "drawing takes as long as a step: not more often than every two seconds"
    show([*log, {"step": 2, "train_runtime": 1.0}])
    assert len(shown) == 2
    assert shown[0] is shown[1], "the same picture, redrawn"
    assert len(shown[0].axes[0].lines[0].get_xdata()) == 2


def test_a_title_of_parts_breaks_between_them_and_keeps_within_the_figure():
    figure = plt.figure(figsize=(7, 3))
    figure.suptitle("mine")
    models = "tiny: 0.2 M, made by the kit", "small: SmolLM2, 135 M", "medium: Qwen, 1.5 B"
    plots.titled(figure, " · ".join(["Stored evidence, not made by this run", *models]))
    *lines, last = figure.get_suptitle().split("\n")
    assert last == "mine"
    assert len(lines) == 2
    assert max(map(len, lines)) <= 91
    assert [part.strip(" ·") for line in lines for part in line.split(" · ")] == [
        "Stored evidence, not made by this run",
        *models,
    ]
    plots.titled(plt.figure(figsize=(7, 3)), "a part of many words " * 9)
    assert max(map(len, plt.gcf().get_suptitle().split("\n"))) <= 91
