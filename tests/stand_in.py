"""The CUDA backend without a GPU: its sources, compiled so that the CPU simulates one (stand_in/stand_in.hpp)."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig

from compiler import ROOT, compile_all

CPP = ROOT / "cpp"
STAND_IN = ROOT / "tests" / "stand_in"


def load_cuda():
    """`throughtime._cuda`: the GPU build if it and a GPU exist, else the stand-in."""
    try:
        from throughtime import _cuda

        if _cuda.device_count():  # of GPUs, or of the stand-in
            return _cuda
    except ImportError:
        pass
    # Under a different name, because pybind11 returns the first module that was made under a name.
    spec = importlib.util.spec_from_file_location("stand_in._cuda", build())
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughtime._cuda"] = module
    spec.loader.exec_module(module)
    sys.modules["throughtime"]._cuda = module
    return module


def build():
    """Builds the stand-in; returns its file."""
    import pybind11

    sources = [*CPP.glob("cuda/**/*.cpp"), *CPP.glob("bindings/cuda/*.cpp"), *STAND_IN.glob("*.cpp")]
    sources.sort(key=lambda path: path.stat().st_size, reverse=True)
    options = [
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-DTT_CUDA",
        "-DTT_ISA=cuda",
        f"-I{pybind11.get_include()}",
        f"-I{CPP}",
        f"-I{STAND_IN}",
    ]
    options.append(f"-I{sysconfig.get_paths()['include']}")
    objects = compile_all(
        (f"{source.parent.parent.name}-{source.stem}.o", [*options, "-c", source]) for source in sources
    )
    (module,) = compile_all([("_cuda.so", ["-shared", *objects])])
    return module
