"""Answers as people, Markdown and LaTeX write them; a grader that outlives signals and forks."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tml_lib.lm import grading, notation
from tml_lib.lm.grading import Grader

RIGHT = {
    "18": """18|18.|18.0|18.00|+18|018| 18 |{18}|$18$|\\$18|\\text{\\$}18|$\\$18$|€18|£18|¥18|₹18
        18€|18 €|18 £|18\\$|US$18|USD 18|18 USD|18 EUR|-(-18)|18 dollars
        18 Dollars|18\\text{ dollars}
        18 \\text{dollars}|\\text{18 dollars}|18\\,\\text{km}|18~\\mathrm{km}|18 km|18km|18 km/h
        18\\%|18%
        18 percent|18^\\circ|18^{\\circ}|18°|18 degrees|18°C|18\\text{ cm}^2|18 cm²|18 apples
        18 red apples|18 apples per day|**18**|**18**.|18**.|__18__|_18_|`18`
        \\textbf{18}|\\mathbf{18}
        \\text{18}|\\mathrm{18}|\\textbf{18 dollars}|1.8e1|1.8E+1|180e-1|1.8 \\times 10^1
        1.8\\times10^{1}|1.8 × 10^1|1.8 * 10^1|36/2|\\frac{36}{2}|\\dfrac{36}{2}|9+9|3 \\cdot 6
        \\sqrt{324}|18 minutes|£18.00|18 euros|18 pounds|\\(18\\)|18\\ \\text{units}""",
    "-7": "-7|−7|$-7$|-$7|-\\$7|\\$-7|-7.0|-7 degrees|-7°C|-\\frac{14}{2}|- 7|**-7**|-£7",
    "1234": """1234|1,234|1{,}234|1\\,234|1,\\!234|1 234|\\$1,234|\\$1{,}234.00|1,234 km
        €1,234.00|1.234e3|1.234 \\times 10^3|1\\,234\\text{ m}|**1,234**""",
    "1000": "1e3|1E3|10^3|10^{3}|1 \\times 10^3|1,000|1 thousand|1000 g",
    "2.5": "2 1/2|2\\frac{1}{2}|2 \\frac12|2½|5/2|\\frac{5}{2}|2.50|\\$2.50|250%|2.5.",
    "0.5": "0.5|.5|1/2|½|\\frac{1}{2}|\\frac12|50%|50\\%|5e-1",
    "50\\%": "50%|50|0.5|1/2|50 percent",
    "1500000": "1.5 million|\\$1.5\\text{ million}|1,500,000|1.5 \\times 10^6",
    "5 km": "5|5 km|5 kilometers|5\\text{ km}",
    "C": "C|\\text{C}|(C)|\\textbf{(C)}|C.|C) 12 metres|**C**|\\mathrm{C}|c",
    "CA": "CA|\\text{CA}|ca",
    "yes": "yes|Yes|\\text{Yes}|**yes**",
    "Monday morning": "Monday morning|\\text{monday  morning}",
    "\\{1,2\\}": "\\{1,2\\}|\\{2,1\\}|\\{1, 2.0\\}|$\\{2, 1\\}$|\\left\\{1,2\\right\\}",
    "(2,1)": "(2,1)|(2, 1)|\\left(2, 1\\right)|(2.0,1)",
    "x+1": "x+1|1+x|x + 1",
    "\\frac{1}{\\sqrt{2}}": "\\frac{1}{\\sqrt{2}}|\\frac{\\sqrt{2}}{2}",
    "025": "25|025|25.0",
}
WRONG = {
    "18": """17|81|-18|1.8|18.5|180|18x|18 or 19|18 \\times 10^1|1e18|18/2|2^{18}|x_{18}|18 1/2
        18,5|eighteen million|18 thousand|yes|x|18^2|1,800|0.18|""",
    "1": "2 1/4|1 1/2|11|1/2|1e1|(1,2)|10^1|100",
    "1000": "1e4|1.000|10^4|100|1,0000",
    "2.5": "2.5 million|2 1/3|25|2/5|2.05|2 \\frac{1}{3}",
    "50\\%": "0.5%|5%|500|0.05",
    "0.5": "0.05|5|2",
    "5 km": "5 m|5 miles|50 km|6 km",
    "\\$5": "€5|5 cents|\\$6",
    "-7": "7|--7|-7.1|7-",
    "C": "A|B|CA|AC|5",
    "CA": "AC|C|A|CAB",
    "yes": "no|yse|5",
    "stop": "pots|tops|stops",
    "\\{1,2\\}": "(2,1)|(1,2)|[1,2]|\\{1,3\\}|\\{1,2,3\\}",
    "(2,1)": "(1,2)|\\{1,2\\}|[2,1]|(2,1,0)|(2,1]",
    "x+1": "x-1|x|x+2",
}


def pairs(table):
    rows = ((answer, row) for answer, text in table.items() for row in text.split("\n"))
    return [(written.strip(), answer) for answer, row in rows for written in row.split("|")]


@pytest.fixture(scope="module")
def grader():
    grader = Grader(seconds=30)
    yield grader
    grader.close()


def test_the_table_holds_at_least_150_pairs():
    assert len(pairs(RIGHT)) + len(pairs(WRONG)) >= 150


@pytest.mark.parametrize(("written", "answer"), pairs(RIGHT))
def test_a_right_answer_is_right_in_a_box(grader, written, answer):
    assert grader.grade(f"So it is \\boxed{{{written}}}.", answer) is True


@pytest.mark.parametrize(("written", "answer"), pairs(WRONG))
def test_a_wrong_answer_is_wrong_in_a_box(grader, written, answer):
    assert grader.grade(f"So it is \\boxed{{{written}}}.", answer) is False


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("so \\boxed {7}", "7", True),
        ("first \\boxed{8}, then \\boxed {7}", "7", True),
        ("first \\boxed{7}, then \\boxed {8}", "7", False),
        ("… = 73 apples.\nThe answer is **73**.", "73", True),
        ("The answer is £18.", "18", True),
        ("The answer is 42, for 6 * 7 = 42 and 5 are left.", "42", True),
        ("It is 10 - 2 = 8 pens", "8", True),
        ("It took 1.2 \\times 10^3 steps.", "1200", True),
        ("We start at 12:30 and need 7 minutes", "7", True),
        ("so it is 3 + 4", "7", True),
        ("so it is 3 + 4", "4", False),
        ("so it is $x_{12}$", "12", False),
        ("Consider option A. The answer is C.", "C", True),
        ("Consider option A. The answer is C.", "A", False),
        ("Not C. The answer is (B).", "C", False),
    ],
)
def test_grade_of_whole_texts(grader, text, answer, wanted):
    assert grader.grade(text, answer) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("… = 73 apples.\nThe answer is **73**.", "73"),
        ("… = 0.5 hours. So \\boxed{0.5}.", "0.5"),
        ("So \\boxed{\\frac{1}{2}}.", "1/2"),
        ("So \\boxed{1{,}234}.", "1,234"),
        ("So \\boxed{\\$18.50}.", "18.50"),
        ("So \\boxed{18 dollars}", "18"),
        ("So \\boxed{50\\%}", "50%"),
        ("So \\boxed {7}", "7"),
        ("So \\boxed{\\$1.5\\text{ million}}", "1.5 million"),
        ("So \\boxed{AC}", "AC"),
        ("So \\boxed{ x + 1 }", "x + 1"),
        ("So \\boxed{}", None),
        ("It costs $1{,}234$", "1,234"),
        ("It weighs 12kg", "12"),
        ("so it is -$7", "-7"),
        ("The answer is 2*10**5", "2*10^5"),
        ("It is 2\\times 10**{5}", "2× 10^{5}"),
        ("That makes 2× 10**-3", "2× 10^-3"),
        ("**12** 5 are left", "5"),
    ],
)
def test_extract_gives_what_the_text_says(grader, text, wanted):
    assert grader.extract(text) == wanted


@pytest.mark.parametrize("text", [None, 5, b"5", ["5"]])
def test_what_is_no_text_is_refused_by_name(grader, text):
    kind = type(text).__name__
    with pytest.raises(TypeError, match=f"text is .*, of type {kind}: give it as a string"):
        grader.grade(text, "5")
    with pytest.raises(TypeError, match=f"text is .*, of type {kind}"):
        grader.extract(text)
    with pytest.raises(TypeError, match=f"answer is .*, of type {kind}"):
        grader.grade("5", text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("$1{,}234$ or 1,234 or 1\\,234", [1234, 1234, 1234]),
        ("x_{12} = 5, y_12, 2^{12}, 2^12, 2**12, a12", [5, 2, 2, 2]),
        ("at 12:30 or 9:05", []),
        ("the ratio 58:25", [58, 25]),
        ("12kg, 12 kg, 12th, 12x", [12, 12]),
        ("**12** and _12_ and `12` and __12__", [12, 12, 12, 12]),
        ("10-12, 10 - 12, 10 pens -12 pens", [10, 12, 10, 12, 10, 12]),
        ("is -12, = -12, (-12), -$12", [-12, -12, -12, -12]),
        ("- 12 pens\n- 13 pens", [12, 13]),
        ("of 40 pens\n12% are\n-5\n", [40, 12, -5]),
        ("it is -\\$12", [-12]),
        ("1e3, 1.5 \\times 10^{2}, 2 \\cdot 10^1, 10^3", [1000, 150, 20, 10]),
        ("2 1/2 and 2\\frac{1}{2}", [2.5, 2.5]),
        ("12/3 = 4 and 3/4", [12, 3, 4, 0.75, 3, 4]),
        ("3 million, 50%, £5, 5 €", [3_000_000, 50, 5, 5]),
        ("9" * 5000, []),
    ],
)
def test_the_numbers_of_a_text(text, values):
    assert [float(m.value) for m in notation.mentions(text)] == values


# --- the process ----------------------------------------------------------------------------------

SLOW = "\\boxed{9^{9^{9^{9}}} + x}"
FORMULAS = [("\\boxed{\\sqrt{49}}", "7", True), ("\\boxed{\\sqrt{64}}", "9", False)]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGINT])
def test_the_reply_to_a_request_that_a_signal_ended_reaches_no_other(number):
    def stop(*_):
        raise Interrupted

    grader, before = Grader(seconds=3), signal.signal(number, stop)
    try:
        grader.grade(*FORMULAS[0][:2])
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -{int(number)} {os.getpid()}"])
        with pytest.raises(Interrupted):
            grader.grade(SLOW, "7")
        killer.wait()
        for text, answer, wanted in FORMULAS:
            assert grader.grade(text, answer) is wanted
    finally:
        signal.signal(number, before)
        grader.close()


@pytest.mark.parametrize("together", [False, True])
def test_a_reply_with_another_number_is_discarded(together, monkeypatch):
    grader = Grader(seconds=10)
    try:
        grader.grade(*FORMULAS[0][:2])
        late = {"grade": "\\boxed{\\sqrt{64}}", "answer": "8", "number": 999, "seconds": 5}
        grader._process.stdin.write(json.dumps(late) + "\n")
        grader._process.stdin.flush()
        if together:  # as on a busy machine: both replies wait before the first is read
            select, waits = grading.select.select, [2.0]
            monkeypatch.setattr(
                grading.select,
                "select",
                lambda *given: (time.sleep(waits.pop() if waits else 0), select(*given))[1],
            )
        assert [grader.grade(text, answer) for text, answer, _ in FORMULAS] == [True, False]
    finally:
        grader.close()


def graded_in(queue):
    queue.put([grading.grade(text, answer) for text, answer, _ in FORMULAS])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_grades_with_a_process_of_its_own():
    grading.grade(*FORMULAS[0][:2])
    own = grading._shared._process.pid
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=graded_in, args=(queue,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [[True, False]] * 2
    for worker in workers:
        worker.join(timeout=10)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert grading.grade(*FORMULAS[0][:2]) is True
    assert grading._shared._process.pid == own


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_grades_does_not_wait_for_it():
    grading.grade(*FORMULAS[0][:2])
    with grading._shared._lock:
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=graded_in, args=(queue,))
        worker.start()
        assert queue.get(timeout=60) == [True, False]
        worker.join(timeout=10)


def test_a_set_is_graded_in_two_processes():
    code = (
        "from datasets import Dataset\nfrom tml_lib.lm.answers import grade\n"
        "print(grade('\\\\boxed{\\\\sqrt{4}}', '2'))\n"
        "rows = Dataset.from_dict({'text': ['\\\\boxed{\\\\sqrt{%d}}' % k for k in (4, 9)] * 2})\n"
        "got = rows.map(lambda row: {'right': grade(row['text'], '2')}, num_proc=2)\n"
        "print(got['right'][:])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[True, False, True, False]"]


def test_a_lower_limit_of_memory_is_kept_and_grading_works():
    code = "from tml_lib.lm.answers import grade; print(grade('\\\\boxed{\\\\sqrt{4}}', '2'))"
    command = f'ulimit -v 3500000; exec "{sys.executable}" -W error -c "$CODE"'
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"CODE": code},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_a_limit_of_memory_grading_works_and_says_so_once(monkeypatch):
    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert grading.limit_memory() is False
    monkeypatch.setattr(grading, "_said", [])
    with pytest.warns(RuntimeWarning, match="without that limit"):
        grading._say_unlimited()
    grading._say_unlimited()  # warnings are errors here


def test_a_grader_whose_owner_died_ends_by_itself():
    code = (
        "import os, threading\nfrom tml_lib.lm.grading import Grader\n"
        "grader = Grader(seconds=1)\ngrader.grade('\\\\boxed{\\\\sqrt{4}}', '2')\n"
        "print(grader._process.pid, flush=True)\n"
        "threading.Timer(0.5, os._exit, [0]).start()\n"
        "grader.seconds = 1\ngrader.grade('\\\\boxed{9^{9^{9^{9}}} + x}', '2')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    until = time.monotonic() + 10
    while (alive := _is_alive(int(done.stdout))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
