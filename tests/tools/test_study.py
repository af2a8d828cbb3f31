"""The command that studies a reader's own model: evidence, page, resuming, errors."""

import html
import json
import re
import shlex
from html.parser import HTMLParser

import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.lessons import notebooks, page
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.lm.models import LanguageModel
from tml_lib.studies import lora, own_trajectories, probed_curves, trajectories, update_measures
from tml_lib.tools import cli, study

FILES = {"roles": "text"}
OWN_PAIR = ("own_right", "foreign_own")
SMALL = {"max_tokens": ("--max-tokens", "6"), "stride": ("--stride", "64")}


@pytest.fixture
def command(tiny_lm, monkeypatch, tmp_path):
    """Run `study` with a random model of a name that is no name."""
    name = "<img src=x onerror=alert(1)>"
    lm = LanguageModel(tiny_lm.model, tiny_lm.tokenizer, name)
    monkeypatch.setattr(lora.models, "load", lambda *given, **settings: lm)

    def run(subject, *given):
        read = study.SUBJECTS[subject].options
        told = ("max_tokens",) * ("--trajectories-of" in given)
        names = [name for name in SMALL if name in read and name not in told]
        small = [word for name in names for word in SMALL[name]]
        words = ["--preset", "small", *small, "--out", str(tmp_path)]
        return cli.main(["study", subject, *given, *words])

    return run


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    ("subject", "claims"),
    [
        ("trajectories", {"C1", "C2"}),
        ("roles", {"C3", "C6"}),
        ("efficiency", {"C10"}),
        ("updates", {"C11", "C11g", "C11t"}),
        ("paths", {"C12"}),
    ],
)
def test_a_study_writes_evidence_and_a_page_that_needs_no_other_file(
    command, tmp_path, capsys, subject, claims
):
    assert command(subject, "--n", "2") == 0
    said = capsys.readouterr()
    assert "2 questions are too few for a verdict" in said.err
    record = ledger.read_evidence(tmp_path / f"{FILES.get(subject, subject)}.small.json")
    assert record["command"].startswith(f"python -m tml_lib study {subject} --n 2 --preset small")
    assert {name.split(".")[0] for name in record["values"]} == claims
    assert all(len(seed) == 2 for seeds in record["values"].values() for seed in seeds)
    if subject == "updates":  # exact in float64, though the model computes in float32; the longer
        # question has more tokens than this stand-in has hidden units, so there no update is exact
        exact = record["values"]["C11.exact"][0]
        assert min(exact) < -9 < max(exact)
        assert not [name for name in record["values"] if name.endswith("_all")]
    page = (tmp_path / f"{subject}.html").read_text(encoding="utf8")
    words = html.unescape(page)
    tags = Tags(page).found
    loaded = [attrs["src"] for _, attrs in tags if "src" in attrs]
    assert loaded
    assert all(address.startswith("data:image/png") for address in loaded)
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert "&lt;img src=x onerror=alert(1)&gt;" in page, "names are escaped"
    for claim in claims:
        assert rulebook.claims()[claim]["title"] in words
    if subject in ("updates", "paths"):
        assert "This study samples nothing" in page
    else:
        assert re.search(r"\d+% of the model's samples were cut, as .* after 6 tokens", words)


def test_precision_compares_two_dtypes_on_the_material_that_it_makes(command, tmp_path):
    assert command("precision", "--n", "2") == 0
    record = ledger.read_evidence(tmp_path / "precision.small.json")
    written = ledger.read_evidence(tmp_path / "material.small.json")["written"]
    assert [one["id"] for one in record["records"]] == [one["id"] for one in written]
    words = html.unescape((tmp_path / "precision.html").read_text(encoding="utf8"))
    assert "95th percentile" in words
    assert rulebook.rules()["C1", "unstated"]["label"] in words
    assert re.search(r"\d+% of the model's samples were cut, as .* after 6 tokens", words)


def test_a_study_resumes_and_says_what_was_made(command, tmp_path, monkeypatch, capsys):
    command("trajectories", "--n", "2")
    capsys.readouterr()
    again = [lambda *given, **settings: pytest.fail("a question is probed twice")]
    monkeypatch.setattr(trajectories, "question_record", *again)
    assert command("trajectories", "--n", "2") == 0
    assert "of 1" not in capsys.readouterr().out, "nothing is made twice"


def test_a_study_that_kept_no_count_of_cut_samples_says_so(command, tmp_path):
    command("trajectories", "--n", "2")
    path = tmp_path / "trajectories.small.json"
    record = ledger.read_evidence(path)
    assert "samples were cut, as they had not" in (tmp_path / "trajectories.html").read_text()
    del record["cut"]
    path.write_text(json.dumps(record), encoding="utf8")
    words = page.write(tmp_path / "again.html", path, "Why?", "So.").read_text(encoding="utf8")
    assert "No count was kept of how many" in words
    assert "samples nothing" not in words


def test_a_models_own_samples_are_read_again_from_its_evidence(command, tmp_path):
    command("trajectories", "--n", "2")
    first = tmp_path / "trajectories.small.json"
    kept = ledger.read_evidence(first) | {"sampled": ["It is 1.", None], "own_right": [None, None]}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(kept), encoding="utf8")
    assert command("trajectories", "--trajectories-of", str(other)) == 0
    record = ledger.read_evidence(first)
    assert record["sampled"] == ["It is 1.", None]
    assert record["settings"]["seed"] == kept["settings"]["seed"], "the same questions"
    assert ["sampled" in curves for curves in record["curves"]] == [True, False]


def test_controls_are_left_out_where_so_many_are_said(command, tmp_path):
    assert command("trajectories", "--n", "2", "--controls", "1") == 0
    record = ledger.read_evidence(tmp_path / "trajectories.small.json")
    assert record["settings"]["controls"] == 1
    assert ["copying" in curves for curves in record["curves"]] == [True, False]
    assert record["values"]["C1.copying"][0][1] is None
    assert (tmp_path / "trajectories.html").is_file()


def test_another_models_samples_are_another_question(command, tmp_path):
    """What another model wrote is not the reader's own: T1 is asked, and not C1."""
    command("trajectories", "--n", "2")
    kept = ledger.read_evidence(tmp_path / "trajectories.small.json")
    asked = trajectories.study_questions(2, 0)
    right = [f"A first step. So it is {question.answer}." for question in asked]
    kept |= {"sampled": ["It is 1.", None], "own_right": right}
    kept["settings"]["model"] = "writer"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(kept), encoding="utf8")
    assert command("trajectories", "--trajectories-of", str(other), "--stride", "1") == 0
    record = ledger.read_evidence(tmp_path / "transfer.small.json")
    assert record["settings"]["trajectories_of"] == "writer"
    assert {name.split(".")[0] for name in record["values"]} == {"T1"}
    for place, curves in enumerate(record["curves"]):
        own, foreign = (probed_curves.curve_of({"curves": curves}, kind) for kind in OWN_PAIR)
        end = own.stated_at
        assert foreign.length <= own.length
        assert own.answer_nll[0] == foreign.answer_nll[0]
        fall = own.answer_nll[0] - own.at(end)
        of_foreign = foreign.answer_nll[0] - foreign.at(min(end, foreign.length))
        content = record["values"]["T1.content"][0][place]
        assert record["values"]["T1.unstated"][0][place] == pytest.approx(fall, abs=1e-4)
        assert content == pytest.approx(fall - of_foreign, abs=1e-4)
    assert record["values"]["T1.wrong"][0][1] is None, "no wrong sample was given"


def test_studies_take_what_was_written_once(command, tmp_path, monkeypatch):
    """`material` is the only one that samples; trajectories read its texts."""
    command("material", "--n", "3", "--max-tokens", "24")
    path = tmp_path / "material.small.json"
    text = json.loads(path.read_text(encoding="utf8"))
    asked = trajectories.study_questions(3, 0)
    for question, one in zip(asked, text["written"], strict=True):
        said = f"A first step. Then another.{ANSWER_TEMPLATE}{question.answer}}}"
        one["samples"] = [{"text": said, "tokens": 9, "cut": False, "right": True}]
    path.write_text(json.dumps(text), encoding="utf8")
    never = [lambda *given, **settings: pytest.fail("a trajectory is sampled twice")]
    monkeypatch.setattr(own_trajectories, "own_samples", *never)
    assert command("trajectories", "--trajectories-of", str(path), "--n", "2") == 0
    record = ledger.read_evidence(tmp_path / "trajectories.small.json")
    assert record["settings"]["n_questions"] == 2
    assert all(
        f"boxed{{{q.answer}}}" in t for q, t in zip(asked, record["own_right"], strict=False)
    )
    assert [set(OWN_PAIR) <= set(curves) for curves in record["curves"]] == [True, True]


def test_only_what_holds_a_models_own_samples_is_read(command, tmp_path, capsys):
    """Transfer evidence names its reader, not the writer of its texts."""
    stored = notebooks.stored_evidence()
    for name in ("transfer.small", "sft.tiny", "text.small"):
        place = str(stored / f"{name}.json")
        assert command("trajectories", "--trajectories-of", place) == 2
        assert "and trajectories reads that of material or trajectories" in capsys.readouterr().err
    place = str(stored / "trajectories.small.json")
    told = study._told(stored / "trajectories.small.json", "trajectories")
    assert told == {"seed": 1, "data": "", "samples": 2}
    assert command("strides", "--trajectories-of", place) == 2
    assert "and strides reads that of material:" in capsys.readouterr().err
    place = str(stored / "material.medium.json")
    for option in ("--seed", "--samples", "--max-tokens"):
        assert command("trajectories", "--trajectories-of", place, option, "3") == 2
        assert f"leave {option} out" in capsys.readouterr().err


def test_cut_samples_and_their_writer_are_carried_over(command, tmp_path):
    command("material", "--n", "2")
    written = tmp_path / "material.small.json"
    record = json.loads(written.read_text(encoding="utf8"))
    record["settings"]["model"] = "writer"
    written.write_text(json.dumps(record), encoding="utf8")
    assert command("strides", "--trajectories-of", str(written), "--n", "2") == 0
    found = ledger.read_evidence(tmp_path / "strides.small.json")
    assert found["settings"]["trajectories_of"] == "writer"
    command("trajectories", "--n", "2")
    kept = ledger.read_evidence(tmp_path / "trajectories.small.json")
    asked = trajectories.study_questions(2, 0)
    owns = own_trajectories.samples_of(kept, asked)
    assert [[own.cut, own.samples] for own in owns] == kept["cut"] == [[2, 2], [2, 2]]
    with pytest.raises(ValueError, match="was made for other questions"):
        own_trajectories.samples_of(kept, asked[::-1])


def test_the_reference_lists_every_subject_with_its_claims_and_options():
    text = (notebooks.folder() / "README.md").read_text(encoding="utf8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+ \| [^|]+) \|$", text, re.MULTILINE))
    for name, subject in study.SUBJECTS.items():
        claims, options = rows[name].split(" | ")
        assert set(re.findall(r"C\d+\w*", claims)) == set(subject.claims)
        told = {
            word.removeprefix("--").replace("-", "_") for word in re.findall(r"--[\w-]+", options)
        }
        assert told == set(subject.options), name


def test_the_commands_of_stored_evidence_are_commands_still():
    found = [ledger.read_evidence(path) for path in notebooks.stored_evidence().glob("*.json")]
    words = [shlex.split(one["command"])[3:] for one in found]
    asked = [command for command in words if command[0] == "study"]
    assert len(asked) > 4
    for command in asked:
        options = cli._parser().parse_args(command)
        study._check(options, study.SUBJECTS[options.subject])
        assert options.max_tokens


def test_all_layers_are_exact_in_float64(command, tmp_path, monkeypatch):
    held = lora.models.load("small")
    wide = LanguageModel(update_measures.wide_copy(held.model), held.tokenizer, held.name)
    found = {"float32": held, "float64": wide}
    monkeypatch.setattr(lora.models, "load", lambda *_, dtype, **more: found[dtype])
    assert command("updates", "--n", "2", "--layers", "all") == 0
    record = ledger.read_evidence(tmp_path / "updates.small.json")
    assert None not in record["values"]["C11.exact_all"][0]
    assert record["settings"]["layers"] == "all"


def test_samples_that_come_with_a_set_are_read(command, tmp_path):
    question = {"problem": "What is 6 times 7?", "answer": "42", "labels": [1, 0, 1]}
    question["generations"] = ["Six by 7 is 40 + 2 = 42.", "It is 41.", "So 42."]
    other = question | {"problem": "And 8 by 8?", "answer": "64"}
    other["generations"] = ["Eight by 8 is 60 + 4 = 64.", "It is 63.", "So 64."]
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps(question) + "\n" + json.dumps(other) + "\n", encoding="utf8")
    assert command("trajectories", "--data", f"own={mine}", "--n", "2", "--samples", "0") == 0
    record = ledger.read_evidence(tmp_path / "trajectories.small-own.json")
    assert sorted(record["own_right"]) == ["So 42.", "So 64."]
    assert sorted(record["sampled"]) == ["It is 41.", "It is 63."]
    assert ledger.cut_share(record) is None
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record), encoding="utf8")
    (tmp_path / "trajectories.small-own.json").unlink()
    assert command("trajectories", "--trajectories-of", str(other), "--n", "2") == 0
    again = ledger.read_evidence(tmp_path / "trajectories.small-own.json")
    assert again["own_right"] == record["own_right"], "filed under the set that was read"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trajectories", "--n", "1"], "n=1 questions give no interval: ask for at least 2"),
        (["updates", "--data", "aime24"], "data=aime24: updates does not read it, only material,"),
        (["roles", "--data", "aime"], "data='aime': 'aime' is no question set that is read here"),
        (["roles", "--data", "livecodebench"], "is no question set that is read here; --data"),
        (["paths", "--preset", "tiny"], "preset 'tiny' reads programs"),
        (
            ["roles", "--trajectories-of", "a.json"],
            "roles does not read it, only trajectories, rejection, rates, strides do",
        ),
        (["roles", "--samples", "3"], "samples=3: roles does not read it, only material,"),
        (["paths", "--layers", "all"], "only updates do; leave --layers out"),
        (["efficiency", "--samples", "0"], "samples=0: efficiency needs at least 1"),
        (["trajectories", "--data", "own"], "data='own': it names no file"),
        (["paths", "--preset", "nope"], "unknown preset 'nope': choose one of"),
    ],
)
def test_what_cannot_be_studied_is_an_error_of_use(command, capsys, words, message):
    arguments = ["study", *words] if "--preset" in words else None
    status = cli.main(arguments) if arguments else command(*words)
    assert status == 2
    assert message in capsys.readouterr().err
