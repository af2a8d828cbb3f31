"""Checks of what was written to a program's question: the first fault of a trajectory, and whether
the answer is right.
"""

from __future__ import annotations

import re

from tml_lib.data.programs import Program

FAULTS = ("none", "garbled", "recital", "operand", "value", "too early", "incomplete", "answer")


def fault(program: Program, text: str) -> str:
    """The first thing that is wrong in a written-out trajectory with its answer, by kind; 'none'
    where nothing is.

    garbled: a word that fits nowhere. recital: a statement that the question does not have.
    operand: an operand's value other than the one written before. value: a wrong result that no
    'Wait' follows. too early: a value for an operand that has none, or '?' for one that has.
    incomplete: an answer before every statement it needs. answer: not what was computed.
    """
    statements, known = {s.name: s for s in program.statements}, dict(program.inputs)
    trajectory, _, answer = text.partition("\\boxed{")
    words = trajectory.replace("**Final Answer**", "").split()
    current = None
    for k, word in enumerate(words):
        if word[1:] == ":=":
            current = statements.get(word[0])
            if current is None:
                return "recital"
        elif current is None:
            return "garbled"
        elif re.fullmatch(r"[a-p][-+*/][2-6]", word):
            if word != current.words[1]:
                return "recital"
        elif re.fullmatch(r"[a-p]=\?", word):
            if word[0] != current.operand or word[0] in known:
                return "too early"
        elif re.fullmatch(r"[a-p]=[0-6]", word) and word[0] == current.operand:
            if known.get(word[0]) != int(word[2]):
                return "operand" if word[0] in known else "too early"
        elif re.fullmatch(r"[a-p]=[0-6]", word) and word[0] == current.name:
            if current.operand not in known:
                return "too early"
            if words[k + 1 : k + 2] != ["Wait"]:
                if int(word[2]) != current.apply(known[current.operand]):
                    return "value"
                known[word[0]] = int(word[2])
        elif word not in (".", "Wait", "Alternatively"):
            return "garbled"
    if any(letter not in known for letter in program.asked):
        return "incomplete"
    wanted = " ".join(f"{letter}={known[letter]}" for letter in program.asked)
    return "none" if answer.partition("}")[0].split() == wanted.split() else "answer"


def graded(text: str, answer: str) -> bool:
    """Whether the words between '\\boxed{' and '}' are exactly the answer's."""
    _, found, rest = text.rpartition("\\boxed{")
    return bool(found) and rest.partition("}")[0].split() == answer.split()
