"""Programs: answers that two interpreters agree on, trajectories that are what their style says,
splits that never meet.
"""

import itertools
import random

import pytest

from tml_lib.data import programs
from tml_lib.data.programs import Program, Statement

ALL_SPLITS = list(programs.SPLITS)


def run(text):
    """Answer of a question by Python's own eval on renamed lines: an interpreter that shares
    nothing with the library.
    """
    lines = [line.replace("<-", ":=") for line in text.split("\n")]
    (asked,) = [line.split() for line in lines if line.startswith("?")]
    known = {word[0]: int(word[2]) for line in lines for word in line.split() if word[1] == "="}
    waiting = [line.split() for line in lines if ":=" in line]
    while waiting:
        name, operation = next(s for s in waiting if s[1][0] in known)
        waiting.remove([name, operation])
        value, literal = known[operation[0]], int(operation[2])
        inverse = next(x for x in range(7) if x * literal % 7 == 1)
        found = {
            "+": value + literal,
            "-": value - literal,
            "*": value * literal,
            "/": value * inverse,
        }
        known[name[0]] = found[operation[1]] % 7
    return " ".join(f"{word[1]}={known[word[1]]}" for word in asked)


@pytest.fixture(scope="module")
def sets():
    return {split: programs.questions(150, 3, split) for split in ALL_SPLITS}


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_answers_are_those_of_an_independent_interpreter(sets, split):
    for question in sets[split]:
        assert question.answer == run(question.text)
        assert question.trajectories[0].answer == question.answer


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_a_question_reads_back_as_its_program(sets, split):
    for question in sets[split]:
        assert programs.parse(question.text).text == question.text


def test_the_first_questions_of_a_seed_do_not_depend_on_how_many_are_asked_for():
    assert programs.questions(3, 5) == programs.questions(9, 5)[:3] != programs.questions(3, 6)


def canonical(program):
    """The program without letters and line order: per chain its start and its operations."""
    follows = {s.operand: s for s in program.statements}
    chains = []
    for letter, value in program.inputs:
        chain = [value]
        while letter in follows:
            chain.append((follows[letter].operator, follows[letter].literal))
            letter = follows[letter].name
        chains.append(tuple(chain))
    return tuple(sorted(chains, key=repr))


def test_trained_and_tested_programs_are_disjoint_up_to_renaming():
    seen = {split: set() for split in ALL_SPLITS}
    # short chains, which would meet if anything did
    for split, steps in itertools.product(ALL_SPLITS, (1, 2)):
        seen[split] |= {
            canonical(programs.parse(q.text))
            for q in programs.questions(1500, 0, split, steps=steps)
        }
    assert not seen["train"] & seen["held_out"]
    assert not seen["train"] & seen["harder"]
    assert not seen["train"] & seen["other_surface"]
    assert not seen["train"] & seen["other_operations"]
    assert len(seen["held_out"]) > 300


def test_renaming_and_reordering_leave_a_program_on_its_side():
    rng = random.Random(0)
    for question in programs.questions(50, 1):
        program = programs.parse(question.text)
        names = dict(zip(programs.LETTERS, rng.sample(programs.LETTERS, 16), strict=True))
        moved = [
            Statement(names[s.name], names[s.operand], s.operator, s.literal)
            for s in program.statements
        ]
        rng.shuffle(moved)
        inputs = tuple((names[letter], value) for letter, value in reversed(program.inputs))
        twin = Program(inputs, tuple(moved), tuple(names[letter] for letter in program.asked))
        assert programs.is_held_out(twin) == programs.is_held_out(program) is False


def test_splits_are_what_they_are_called(sets):
    for split, question in ((name, q) for name in ALL_SPLITS for q in sets[name]):
        program = programs.parse(question.text)
        operators = {s.operator for s in program.statements}
        assert len(program.statements) == 2 * (programs.STEPS + (split == "harder"))
        assert operators <= set("-/" if split == "other_operations" else "+*")
        assert program.other_surface == (split == "other_surface")


def test_difficulty_is_the_number_of_statements_of_a_chain():
    for steps in (1, 2, 5):
        assert (
            len(programs.parse(programs.questions(1, steps=steps)[0].text).statements) == 2 * steps
        )


# --- trajectories ---------------------------------------------------------------------------------


def replay(program, text):
    """Walk a full-step trajectory word by word; returns (values written, first offset of a value
    that does not follow).
    """
    known, statements = dict(program.inputs), {s.name: s for s in program.statements}
    offset, first_error, current = 0, None, None
    for word in text.split():
        if word[1:] == ":=":
            current = statements[word[0]]
        elif len(word) == 3 and word[1] == "=" and word[2] == "?":
            assert word[0] == current.operand
            assert word[0] not in known
        elif len(word) == 3 and word[1] in programs.TRAINED + programs.OTHER:
            assert word == current.words[1]
        elif len(word) == 3 and word[0] == current.operand:
            assert known[word[0]] == int(word[2])
        elif len(word) == 3:
            assert word[0] == current.name
            right = current.apply(known[current.operand]) == int(word[2])
            following = text[offset + len(word) + 1 :].split(" ", 1)[0]
            if not right and following != "Wait" and first_error is None:
                first_error = offset
            known[word[0]] = int(word[2])
        else:
            assert word in (".", "Wait", "Alternatively")
        offset += len(word) + 1
    return known, first_error


@pytest.mark.parametrize("style", ["plain", "self_correcting", "exploring", "long", "wrong"])
@pytest.mark.parametrize("split", ALL_SPLITS)
def test_full_trajectories_follow_step_by_step_and_err_only_where_they_say(sets, style, split):
    rng = random.Random(0)
    for question in sets[split][:60]:
        program = programs.parse(question.text)
        trajectory = programs.trajectory(program, style, rng)
        values, first_error = replay(program, trajectory.text)
        assert trajectory.answer == " ".join(
            f"{letter}={values[letter]}" for letter in program.asked
        )
        assert trajectory.correct == (trajectory.answer == question.answer) == (style != "wrong")
        assert trajectory.first_error == first_error
        assert trajectory.kind == style


@pytest.mark.parametrize(
    ("style", "always", "never"),
    [
        ("plain", {"."}, {"Wait", "Alternatively"}),
        ("self_correcting", {"Wait"}, {"Alternatively"}),
        ("exploring", {"Alternatively"}, {"Wait"}),
        ("short", set(), {".", "Wait", "Alternatively"}),
        ("wrong", {"."}, {"Wait", "Alternatively"}),
    ],
)
def test_each_style_has_its_own_words(sets, style, always, never):
    for seed, question in enumerate(sets["held_out"]):
        written = set(
            programs.trajectory(
                programs.parse(question.text), style, random.Random(seed)
            ).text.split()
        )
        assert always <= written
        assert not never & written


def test_long_trajectories_reflect_at_the_stated_rate():
    rng, steps, waits = random.Random(0), 0, 0
    for question in programs.questions(600, 2):
        words = programs.trajectory(programs.parse(question.text), "long", rng).text.split()
        steps, waits = steps + words.count("."), waits + words.count("Wait")
    assert waits / steps == pytest.approx(programs.REFLECTION_RATE, abs=0.02)


def test_short_trajectories_take_every_statement_once_in_a_valid_order(sets):
    for seed, question in enumerate(sets["harder"]):
        program = programs.parse(question.text)
        words = programs.trajectory(program, "short", random.Random(seed)).text.split()
        values, seen = program.values(), {letter for letter, _ in program.inputs}
        assert len(words) == 3 * len(program.statements)
        for name, operation, result in zip(words[::3], words[1::3], words[2::3], strict=True):
            assert operation[0] in seen
            assert result == f"{name[0]}={values[name[0]]}"
            seen.add(name[0])


def test_a_summary_states_everything_but_the_answer(sets):
    for seed, question in enumerate(sets["held_out"]):
        program = programs.parse(question.text)
        text = programs.trajectory(program, "summarised", random.Random(seed)).text
        stated = {word[0] for word in text.split() if word[1] == "=" and len(word) == 3}
        assert stated == {s.name for s in program.statements} - set(program.asked)
        assert not set(question.answer.split()) & set(text.split())


@pytest.mark.parametrize("style", ["long", "self_correcting", "exploring"])
def test_every_question_has_at_least_32_distinct_trajectories(sets, style):
    for question in sets["train"][:30]:
        found = programs.trajectories(programs.parse(question.text), 32, style)
        assert len({t.text for t in found}) == 32
        assert all(t.correct for t in found)


def test_plain_orders_are_counted_by_the_binomial():
    program = programs.parse(programs.questions(1, 0)[0].text)
    # C(6, 3) interleavings of two chains of three
    assert len(programs.trajectories(program, 20, "plain")) == 20
    with pytest.raises(ValueError, match="only 20 distinct 'plain' trajectories"):
        programs.trajectories(program, 21, "plain")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1\nb:= c+2\n?b", "no valid trajectory: it asks for 'b'.*reached: a"),
        ("a=1\nb:= c+2\nc:= b+2\n?c", "no valid trajectory: it asks for 'c'"),
        ("a=1\nb:= a+2\n?d", "no valid trajectory: it asks for 'd'"),
    ],
)
def test_a_question_without_a_valid_trajectory_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        programs.trajectory(programs.parse(text), "plain", random.Random(0))


def test_statements_that_nothing_asks_for_may_dangle():
    program = programs.parse("a=1\nb:= a+2\nd:= c*2\n?b")
    assert programs.trajectory(program, "plain", random.Random(0)).text == "b:= a+2 a=1 b=3 ."
    assert (
        "d:= c*2 c=? Alternatively"
        in programs.trajectory(program, "exploring", random.Random(0)).text
    )


def test_nothing_can_be_explored_where_every_statement_is_ready():
    with pytest.raises(ValueError, match="none can be begun too early"):
        programs.trajectory(programs.parse("a=1\nb:= a+2\n?b"), "exploring", random.Random(0))


def test_an_unknown_style_or_split_is_refused_with_the_known_ones():
    program = programs.parse("a=1\nb:= a+2\n?b")
    with pytest.raises(
        ValueError, match="unknown trajectory style 'lang': choose one of plain, short"
    ):
        programs.trajectory(program, "lang", random.Random(0))
    with pytest.raises(ValueError, match="unknown split 'test': choose one of train, held_out"):
        programs.questions(1, split="test")


@pytest.mark.parametrize(
    ("n", "steps", "message"),
    [(0, 3, "n=0 questions"), (1, 0, "steps=0"), (1, 8, r"steps=8.*1\.\.7")],
)
def test_counts_out_of_range_are_refused(n, steps, message):
    with pytest.raises(ValueError, match=message):
        programs.questions(n, steps=steps)


@pytest.mark.parametrize(
    "text", ["a=7\n?a", "a=1\nb= a+2\n?b", "a=1\nb:= a^2\n?b", "q=1\n?q", "a=1\nb:=\n?b"]
)
def test_what_is_no_program_is_refused_by_word(text):
    with pytest.raises(ValueError, match="begins no part of a program"):
        programs.parse(text)
