"""What several commands share: a count as an argument, and what an interrupted command leaves."""

from __future__ import annotations

import argparse

ANEW = "the same command begins anew"
RESUMES = "what had finished is kept, and the same command resumes"


def count(text: str, least: int = 1) -> int:
    """A whole number on the command line that is at least `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(text)
