"""The machine at hand: device, number format with its reason, seeds, versions, Colab and Kaggle.

Torch is imported inside the functions that need it, so that reading settings stays light.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from radvision_utils.config import ModelSettings, RadVisionError

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "pillow", "ipywidgets")
_PAIR = ("torch", "torchvision")  # never replaced: Colab and Kaggle break when they are
# Set in the environment, the first takes the place of the choice below; the second lets a card stand for a smaller one.
DTYPE_VARIABLE, MEMORY_VARIABLE = "RADVISION_DTYPE", "RADVISION_GIB"


@dataclass(frozen=True)
class Device:
    """Where the model computes, and in which numbers."""

    kind: str  # "cuda" or "cpu"
    title: str  # "Tesla T4, 14.6 GiB" or "CPU, 2 cores"; the GiB are what torch may have
    dtype: str  # of 16-bit weights and of computation: "float16", "bfloat16" or "float32"
    dtype_reason: str

    def torch_dtype(self) -> Any:
        """The `torch.dtype` of `dtype`."""
        import torch

        return getattr(torch, self.dtype)

    def autocast(self) -> Any:
        """The context in which trained float32 tensors meet 16-bit weights; does nothing where all is float32."""
        import torch

        return contextlib.nullcontext() if self.dtype == "float32" else torch.autocast(self.kind, self.torch_dtype())


def choose_device() -> Device:
    """The first CUDA card if there is one, else the CPU.

    Raises:
        RadVisionError: `RADVISION_DTYPE` or `RADVISION_GIB` has a value that means nothing.
    """
    import torch

    cap = memory_cap()
    if not torch.cuda.is_available():
        reason = "a CPU computes in float32; bfloat16 autocast is slower there"
        return Device("cpu", f"CPU, {os.cpu_count()} cores", *_asked_dtype("float32", reason))
    index = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    major, minor = torch.cuda.get_device_capability(index)
    name, gib = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory / 2**30
    capped = cap is not None and cap < gib
    title = f"{name} under {MEMORY_VARIABLE}, {cap:g} GiB" if capped else f"{name}, {gib:.1f} GiB"
    torch.cuda.set_per_process_memory_fraction(cap / gib if cap is not None and capped else 1.0, index)
    # torch.cuda.is_bf16_supported() says True on a T4, where bfloat16 is emulated: ask the compute capability.
    dtype = "bfloat16" if major >= 8 else "float16"
    reason = f"compute capability {major}.{minor}; bfloat16 in hardware begins at 8.0"
    return Device("cuda", title, *_asked_dtype(dtype, reason))


def _asked_dtype(dtype: str, reason: str) -> tuple[str, str]:
    asked = os.environ.get(DTYPE_VARIABLE, "")
    if asked not in ("", "float16", "bfloat16", "float32"):
        raise RadVisionError(f"{DTYPE_VARIABLE} is {asked!r}: give float16, bfloat16 or float32, or unset it.")
    return (asked, f"{DTYPE_VARIABLE} asks for it instead of {dtype}") if asked else (dtype, reason)


def memory_cap() -> float | None:
    """How many GiB of a card torch may have by `RADVISION_GIB`; None: all.

    Raises:
        RadVisionError: it is no sensible number.
    """
    asked = os.environ.get(MEMORY_VARIABLE, "")
    try:
        cap = float(asked) if asked else None
    except ValueError:
        cap = 0.0
    if cap is not None and not 0 < cap <= 1024:
        raise RadVisionError(f"{MEMORY_VARIABLE} is {asked!r}: give GiB such as 14.56, or unset it.")
    return cap


def process_rank() -> int:
    """The number of this process among those that `accelerate launch` or `torchrun` started; 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_device(settings: ModelSettings, device: Device) -> None:
    """Refuse at once, before any download, what this machine cannot do.

    Raises:
        RadVisionError: the base is a hub model of billions of parameters and there is no CUDA card.
    """
    if device.kind == "cpu" and settings.base != "tiny" and not Path(settings.base).is_dir():
        raise RadVisionError(
            f"base model {settings.base!r} needs an NVIDIA card with at least 16 GB of memory and about 20 GB of disk, "
            "and torch sees no card here: use a GPU machine (Kaggle, Colab), or `--profile tiny` on this one."
        )


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import transformers

    transformers.set_seed(seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    return {**found, **{name: _version(name) or "absent" for name in LIBRARIES}}


def conditions(device: Device) -> dict[str, Any]:
    """Under what a step computes: where all of it is the same, so is the result, bit for bit on a CPU."""
    import torch

    named = {"device": device.title, "dtype": device.dtype}
    return {**named, "threads": torch.get_num_threads(), "versions": versions()}


def forget_peak_memory(device: Device) -> None:
    """Let the peak of the card begin anew; that of a process cannot."""
    if device.kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib(device: Device) -> float:
    """Peak memory so far: of the card since `forget_peak_memory`, or of this process where there is no card. GiB."""
    if device.kind == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated()) / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def open_room(name: str) -> ModuleType:
    """A module that stands beside the spine (drawn studies, bases, planning ...), imported when a run asks for it.

    The spine is read without these rooms, and imports none of them: it calls what they hold by this function.
    """
    return importlib.import_module(f"radvision_utils.{name}")


def hosted_notebook() -> str:
    """ "colab", "kaggle", or "" elsewhere."""
    if importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"):
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else ""


def unmet() -> dict[str, str]:
    """What pyproject.toml asks for and is older here, or is not here (""): `{"peft>=0.19": "0.17.1"}`.

    Of the extras `dicom` and `hosts` only what is here counts. Where the package is installed without its project, pip
    has seen to all of it.
    """
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    asked = text.partition("\ndependencies = [")[2].partition("\ntest = [")[0]
    found: dict[str, str] = {}
    for name, limit, floor in re.findall(r'"([\w-]+)([>=]=)([\d.]+)', asked):
        version = _version(name)
        optional = asked.index(f'"{name}{limit}') > asked.index("\ndicom = [")
        if _numbers(version) < _numbers(floor) and (version or not optional):
            found[f"{name}{limit}{floor}"] = version
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def set_up_libraries() -> list[str]:
    """See to the libraries before any of them is imported; on Colab and Kaggle install what is missing or too old.

    Returns:
        What was installed.

    Raises:
        RadVisionError: a library is too old, pip failed, or what was too old has been imported already.
    """
    lacking = unmet()
    wanted = [name for name in lacking if re.split("[>=]=", name)[0] not in _PAIR] if hosted_notebook() else []
    if wanted:
        replaced = {re.split("[>=]=", name)[0] for name in wanted if lacking[name]}
        pins = [f"{name}=={_version(name)}" for name in _PAIR]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *wanted, *pins]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise RadVisionError(f"pip could not install {', '.join(wanted)}: {last}")
        homes = importlib.metadata.packages_distributions() if replaced else {}
        if stale := sorted(name for name in sys.modules if replaced & set(homes.get(name, ()))):
            raise RadVisionError(f"{', '.join(wanted)} came while an older {stale[0]} is in use: restart the session.")
        lacking = unmet()
    if old := [name for name, version in lacking.items() if version]:
        told = ", ".join(f"{re.split('[>=]=', name)[0]} {lacking[name]}" for name in old)
        needed = " ".join(f"'{name}'" for name in old)
        raise RadVisionError(f"installed libraries are too old ({told}): `python -m pip install {needed}`.")
    return wanted


def in_live_notebook() -> bool:
    """Whether a person may be looking at widgets: an IPython kernel that papermill did not start."""
    if "ipykernel" not in sys.modules or os.environ.get("RADVISION_HEADLESS"):
        return False
    from IPython.core.getipython import get_ipython

    return get_ipython() is not None


def setup_notebook() -> None:
    """What every notebook begins with: see to the libraries, send log lines to the page, print the versions."""
    installed = set_up_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    quiet_libraries()
    if installed:
        print(f"Installed: {', '.join(installed)}.")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))


def quiet_libraries() -> None:
    """Keep other libraries' remarks out of our lines; their warnings stay."""
    for name in ("httpx", "datasets", "traitlets", "matplotlib", "torch", "transformers", "peft", "papermill"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Said with every model on a CPU: a faster 4-bit kernel could be fetched (nothing is, unasked), 4-bit weights are
    # unpacked, as they are meant to be; by transformers 5.9 of Colab: it has no check for the vision encoder's rope.
    for name in ("bitsandbytes", "transformers.integrations.bitsandbytes", "transformers.modeling_rope_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # transformers 5.24 renames gradient to activation checkpointing; the 5.15 of Colab knows only the old name.
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    # Known: without a card there is nothing to page to.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU", category=UserWarning)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ended, on the card or of the machine."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
        return True
    return isinstance(error, RuntimeError) and should_reduce_batch_size(error)


def free_failed_calls() -> None:
    """Let go of what an earlier call that failed still holds, so that it can be made again.

    A notebook keeps its last error, whose traceback keeps the call's frames, and these their models and tensors; so
    does an error that is being handled. Only tracebacks go. To clear their frames would not do: a frame keeps its
    function, and that what it closes over.
    """
    from accelerate.utils.memory import clear_device_cache

    errors = [sys.exc_info()[1], getattr(sys, "last_value", None)]
    while errors:
        error = errors.pop()
        if error is not None and error.__traceback__ is not None:
            error.__traceback__ = None
            errors += [error.__cause__, error.__context__]
    if hasattr(sys, "last_traceback"):
        del sys.last_traceback
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.InteractiveTB.tb = None
    clear_device_cache(garbage_collection=True)
