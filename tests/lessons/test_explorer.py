"""The interactive view of a trajectory: its numbers are the curves', and no text of it is HTML."""

import dataclasses
import json

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from tml_lib.claims import ledger
from tml_lib.lessons import explorer, names, notebooks, outputs
from tml_lib.lm.answers import encode
from tml_lib.measure.probe import probe
from tml_lib.records import Trajectory
from tml_lib.studies import own_trajectories, trajectories
from tml_lib.tools import cli

BAD = "</script><script>window.hit=1</script><!--<img src=x onerror=window.hit=1> & $x$"


@pytest.fixture(scope="module")
def question():
    return trajectories.study_questions(1, seed=3)[0]


@pytest.fixture(scope="module")
def texts(tiny_lm, question):
    own = own_trajectories.Own(
        Trajectory("It is 8.", "own_right", question.answer, True),
        Trajectory(f"It is 17. {BAD}", "sampled", "17", False),
    )
    return trajectories.build_conditions(tiny_lm, question, trajectories.strangers(3), own, 3)


@pytest.fixture(scope="module")
def view(tiny_lm, question, texts):
    return explorer.measured(tiny_lm, question, texts, stride=3)


def held(page):
    """The data that a page's script reads."""
    (script,) = BeautifulSoup(page, "html.parser").find_all("script", type="application/json")
    return json.loads(script.string)


def test_the_pages_numbers_are_those_of_the_curves(tiny_lm, question, texts, view):
    data = held(explorer.html(view.data()))
    assert [one["kind"] for one in data["conditions"]] == list(explorer.KINDS)
    answers = [one["answer"] for one in data["candidates"]]
    for one in data["conditions"]:
        text = texts[one["kind"]].text
        curves = probe(tiny_lm, tiny_lm.prompt(question.text), text, answers, stride=3)
        assert one["positions"] == curves[0].positions.tolist()
        assert np.allclose(one["nll"], [curve.answer_nll for curve in curves], atol=6e-5)
        assert one["stated_at"] == curves[0].stated_at
        assert "".join(one["segments"]) == text
        ends = np.cumsum([len(segment) for segment in one["segments"]])
        known = encode(tiny_lm.tokenizer, tiny_lm.prompt(question.text), text, answers).ends
        assert ends.tolist() == [known[i - 1] for i in one["positions"][1:]]


def test_colours_saturate_at_the_97th_percentile_of_all_steps(view):
    steps = [abs(x) for found in view.curves.values() for x in np.diff(found[0].answer_nll)]
    assert view.data()["span"] == pytest.approx(np.quantile([*steps, 0.0], 0.97))


def test_candidates_are_the_right_answer_and_wrong_ones_that_the_texts_suggest(
    tiny_lm, question, texts
):
    found = explorer.candidates(tiny_lm, question, texts)
    assert (found[0].answer, found[0].role) == (question.answer, "right")
    roles = {one.answer: one.role for one in found[1:]}
    assert roles["17"] == "wrong: stated by the model's own sample"
    assert roles[texts["corrupted"].answer] == "wrong: stated by gold with one value corrupted"
    assert len(found) == 4
    for one in found:
        (suffix,) = encode(tiny_lm.tokenizer, "Q", "", [one.answer]).suffixes
        assert one.tokens == len(suffix.ids[suffix.start :])
    pairs = [(a.answer, b.answer) for a in found for b in found if a is not b]
    assert not any(one.startswith(other) for one, other in pairs)
    begun = texts | {"sampled": Trajectory("x", "sampled", f"{question.answer}5", False)}
    wrong = [one.answer for one in explorer.candidates(tiny_lm, question, begun)[1:]]
    assert f"{question.answer}5" not in wrong
    same = texts | {"sampled": Trajectory("x", "sampled", f"{question.answer}.0", False)}
    wrong = [one.answer for one in explorer.candidates(tiny_lm, question, same)[1:]]
    assert f"{question.answer}.0" not in wrong, "the right value in another writing"


@pytest.mark.parametrize("whole", [False, True])
def test_no_text_is_read_as_html(view, whole):
    data = view.data() | {"question": BAD, "model": BAD}
    data["candidates"][1] |= {"answer": BAD, "role": BAD}
    data["conditions"][0]["segments"][0] = BAD
    page = (explorer.page if whole else explorer.html)(data)
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find_all(["img", "svg", "iframe"]) == []
    kinds = [tag.get("type") for tag in soup.find_all("script")]
    assert kinds == ["application/json", None]
    assert soup.find_all("script")[1].string == explorer.html(view.data()).rpartition("<script>")[
        2
    ].removesuffix("</script></div>")
    assert held(page)["question"] == held(page)["conditions"][0]["segments"][0] == BAD
    assert BAD in soup.select_one(".tml-still").get_text()


def test_kinds_have_the_names_and_colours_of_the_kits_figures(view):
    styles = held(explorer.html(view.data()))["styles"]
    for kind in (*explorer.KINDS, explorer.OWN):
        assert kind in names.CONDITIONS
    for kind, style in styles.items():
        known = names.CONDITIONS[kind]
        assert (style["name"], style["colour"]) == (known.name, known.colour)
    data = view.data()
    data["conditions"][0]["kind"] = "red; background: url(x)"
    with pytest.raises(ValueError, match="has no name and colour"):
        explorer.html(data)
    data = view.data()
    data["conditions"][0]["nll"][0][0] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        explorer.html(data)


def test_a_text_of_ones_own_comes_in_front_and_replaces_the_one_before(tiny_lm, view):
    first = explorer.with_text(tiny_lm, view, "Well.")
    again = explorer.with_text(tiny_lm, first, f"Three and four. {BAD}")
    assert list(again.curves) == [explorer.OWN, *explorer.KINDS]
    assert "".join(again.curves[explorer.OWN][0].tokens) == f"Three and four. {BAD}"
    assert len(again.curves[explorer.OWN]) == len(view.candidates)
    with pytest.raises(ValueError, match="no text in the box: write a trajectory"):
        explorer.with_text(tiny_lm, view, " \n")


def test_a_curve_without_its_beginning_or_end_is_refused(tiny_lm, question, view):
    part = probe(tiny_lm, tiny_lm.prompt(question.text), "It is 8.", ["8"], positions=[1, 2])
    bad = dataclasses.replace(view, curves={"gold": part})
    with pytest.raises(ValueError, match=r"along 'gold' is probed at 1\.\.2 of \d tokens: probe"):
        bad.data()


def test_the_box_probes_what_is_written_and_says_what_is_wrong(tiny_lm, view, monkeypatch):
    import ipywidgets
    from IPython import display as shown

    made, shows = [], []

    class Handle:
        update = staticmethod(shows.append)

    def display(thing, display_id=False):
        made.append(thing)
        return Handle if display_id else None

    monkeypatch.setattr(shown, "display", display)
    explorer.box(tiny_lm, view, "Two.")
    area, (button, said) = made[0].children[0], made[0].children[1].children
    assert isinstance(area, ipywidgets.Textarea)
    assert next(iter(made[1].curves)) == explorer.OWN
    area.value = "Seven."
    button.click()
    assert "".join(shows[0].curves[explorer.OWN][0].tokens) == "Seven."
    assert said.value.startswith("L̂ from ")
    area.value = " "
    button.click()
    assert said.value.startswith("there is no text")
    assert len(shows) == 1


def test_pages_show_the_kits_own_view_and_no_other_html(view):
    bundle = view._repr_mimebundle_()
    data = {**bundle, "text/html": "<b>not ours</b>"}
    outputs.make_harmless(data)
    assert data["text/html"] == bundle["text/html"]
    for other in ({"conditions": []}, [], None, {"conditions": [{"kind": BAD}]}):
        data = {explorer.MIME: other, "text/html": "<b>not ours</b>", "text/plain": "x"}
        outputs.make_harmless(data)
        assert "text/html" not in data


def test_a_studys_page_holds_the_curves_of_its_evidence(tiny_lm, monkeypatch, tmp_path):
    from tml_lib.studies import lora

    monkeypatch.setattr(lora.models, "load", lambda *given, **settings: tiny_lm)
    words = ("study", "trajectories", "--n", "2", "--preset", "small", "--max-tokens", "6")
    assert cli.main([*words, "--stride", "8", "--out", str(tmp_path)]) == 0
    record = ledger.read_evidence(tmp_path / "trajectories.small.json")
    page = (tmp_path / "trajectories.html").read_text(encoding="utf8")
    (place,) = [
        k
        for k, q in enumerate(trajectories.study_questions(2, record["settings"]["seed"]))
        if q.text == held(page)["question"]
    ]
    shown = {one["kind"]: one for one in held(page)["conditions"]}
    assert {"gold", "foreign"} <= set(shown)
    for kind, one in shown.items():
        kept = record["curves"][place][kind]["right"]
        table = dict(zip(one["positions"], one["nll"][0], strict=True))
        both = sorted(set(table) & set(kept["positions"]))
        assert len(both) > 2
        stored = dict(zip(kept["positions"], kept["answer_nll"], strict=True))
        assert [table[i] for i in both] == pytest.approx([stored[i] for i in both], abs=2e-4)


def test_stored_views_are_written_by_the_script_of_today():
    (book,) = notebooks.select(["18"])
    cells = nbformat.read(book.path, as_version=4).cells
    stored = [
        output.data for cell in cells for output in cell.get("outputs", []) if "data" in output
    ]
    views = [data for data in stored if explorer.MIME in data]
    assert len(views) == 3
    for data in views:
        assert data["text/html"] == explorer.html(data[explorer.MIME]), "execute notebook 18 again"


def test_own_texts_are_the_stored_ones_of_this_model_and_question_alone(tiny_lm):
    record = ledger.read_evidence(notebooks.stored_evidence() / "trajectories.small.json")
    asked = trajectories.study_questions(3, seed=1)
    how = {"tries": 0, "max_tokens": 8}
    wanted = next(k for k in range(3) if record["sampled"][k] is not None)
    same = dataclasses.replace(tiny_lm, name=record["settings"]["model"])
    found = explorer.own_texts(same, asked[: wanted + 1], seed=1, **how)
    assert found.wrong.text == record["sampled"][wanted]
    for lm, seed in ((tiny_lm, 1), (same, 2)):
        assert explorer.own_texts(lm, asked[: wanted + 1], seed=seed, **how).wrong is None
    assert explorer.own_texts(tiny_lm, asked[:1], seed=1, tries=1, max_tokens=2).samples == 1
