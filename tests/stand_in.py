"""The CUDA backend where there is no GPU: its sources, compiled so that the CPU plays one (cpp/cuda/stand_in.hpp)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from compiler import ROOT, compile_all

CPP = ROOT / "cpp"


def load_cuda():
    """`throughtime._cuda`: the one built for a GPU where it is there and a GPU is, else the stand-in."""
    try:
        from throughtime import _cuda

        if _cuda.device_count():  # of GPUs, or the stand-in's own
            return _cuda
    except ImportError:
        pass
    # Under a name of its own: pybind11 gives the module that it made before under the same one.
    spec = importlib.util.spec_from_file_location("stand_in._cuda", build())
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughtime._cuda"] = module
    spec.loader.exec_module(module)
    sys.modules["throughtime"]._cuda = module
    return module


def build():
    """The stand-in's file, compiled unless these sources were before; it lies among the system's temporary files."""
    import pybind11

    headers = sorted([*CPP.glob("*.hpp"), *CPP.glob("[cs]*/*.hpp"), *CPP.glob("bindings/**/*.hpp")])
    sources = sorted([*CPP.glob("cuda/*.cpp"), *CPP.glob("bindings/cuda/*.cpp")])
    shared = hashlib.sha256(b"".join(path.read_bytes() for path in headers))
    options = ["-O1", "-fPIC", "-fvisibility=hidden", "-DTT_CUDA", "-DTT_ISA=cuda", f"-I{pybind11.get_include()}"]
    options.append(f"-I{sysconfig.get_paths()['include']}")
    folder = Path(tempfile.gettempdir()) / f"throughtime-stand-in-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    objects, jobs = [], []
    for source in sources:
        digest = shared.copy()
        digest.update(" ".join(options).encode() + source.read_bytes())
        objects.append(folder / f"{source.parent.parent.name}-{source.stem}-{digest.hexdigest()[:16]}.o")
        if not objects[-1].exists():
            jobs.append((source, objects[-1]))
    for first in range(0, len(jobs), 2):  # two at a time
        chosen = jobs[first : first + 2]
        compile_all([*options, "-c", source, "-o", f"{target}.part"] for source, target in chosen)
        for _, target in chosen:
            os.replace(f"{target}.part", target)
    name = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
    module = folder / f"_cuda-{name}.so"
    if not module.exists():
        compile_all([["-shared", "-o", f"{module}.part", *objects]])
        os.replace(f"{module}.part", module)
    return module
