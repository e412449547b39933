"""What this machine has, and what is missing for which part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import hemstitch

EXTRAS = {
    "speech": ("kaldi_native_fbank", "soundfile", "kaldifst", "kaldialign", "numba"),
    "demo": ("espeakng-loader",),
    "parallel": ("ray",),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnx", "onnxscript"),
}


def doctor() -> int:
    """Print versions, extras, threads, memory and disk; status 1 if something needed is missing."""
    import torch

    print(f"hemstitch {hemstitch.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"machine: {platform.platform()}, {os.cpu_count()} processors, torch uses {torch.get_num_threads()} threads")
    print("GPU: " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "none (everything runs without)"))
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    print(f"disk: {free:.1f} GB free here" + ("  <- little: a run of a large network needs 1 GB" if free < 1 else ""))
    ok = sys.version_info >= (3, 11)
    if not ok:
        print("Python 3.11 or newer is needed")
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if not _installed(name)]
        ok &= not (missing and extra == "speech")
        print(
            f"extra {extra}: "
            + (f"missing {', '.join(missing)}: pip install 'hemstitch[{extra}]'" if missing else "complete")
        )
    return 0 if ok else 1


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
