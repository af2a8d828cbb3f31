"""What a run shows of its progress."""

from __future__ import annotations

import sys
import threading
import time

from tml_lib.lessons.run_folders import Result


class Board:
    """The progress display: a line that is rewritten on a terminal, a line per event and half
    minute elsewhere.
    """

    def __init__(self, names: list[str]):
        self._state = dict.fromkeys(names, "waits")
        self._lock = threading.Lock()
        self._began = self._shown = time.perf_counter()
        self._live = sys.stderr.isatty()

    def step(self, name: str, done: int, total: int) -> None:
        with self._lock:
            self._state[name] = f"cell {done}/{total}"
            now = time.perf_counter()
            if self._live or now - self._shown > 30:
                self._shown = now
                running = " · ".join(
                    f"{n} {s}" for n, s in self._state.items() if s not in ("waits", "done")
                )
                ready = sum(s == "done" for s in self._state.values())
                line = f"[{now - self._began:4.0f} s] {ready}/{len(self._state)} done · {running}"
                print(
                    f"\r{line[:110]:110}" if self._live else line,
                    end="" if self._live else "\n",
                    file=sys.stderr,
                    flush=True,
                )

    def done(self, result: Result, *, again: bool) -> None:
        with self._lock:
            self._state[result.name] = "done"
            what = "finished" if result.ok else "FAILED"
            took = (
                f"{result.seconds:.0f} s, {result.memory_mb / 1000:.2f} GB"
                if again
                else "kept from the earlier run"
            )
            print(
                f"{chr(13) if self._live else ''}{result.name}: {what} ({took})".ljust(110),
                file=sys.stderr,
                flush=True,
            )
            if result.message:
                print(f"  {result.message}", file=sys.stderr, flush=True)
