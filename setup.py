"""Builds the C++/CUDA extension `dida_kernels._C`; the rest of the package's facts stand in pyproject.toml.

    python setup.py build_ext --inplace          in a checkout, against the torch that is installed
    pip install -e . --no-build-isolation        the same, as part of an installation

The extension is compiled against the torch that will load it, so it is left out where torch cannot be imported (pip's
isolated builds) and where there is no C++ compiler. The package is whole without it: other backends serve, and
`dida_kernels.report()` gives the reason. Where it can be compiled, a failure to do so fails the installation.

    DIDA_BUILD=0                never build it
    DIDA_BUILD=1                never do without it
    DIDA_CUDA_ARCHS="80 90"     CUDA kernels for these compute capabilities alone; empty: none

CUDA kernels are added where there are an nvcc and a torch with CUDA. They see no torch header, which makes them compile
in seconds, and bring their CUDA runtime with them, so that nvcc and torch need not be of the same release.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MACHINE_CODE = ("80", "86", "90", "100", "120")  # as far as nvcc knows them; an 8.9 runs the code of 8.6
ARCHS = "DIDA_CUDA_ARCHS"  # says otherwise
INTERMEDIATE = "90"  # compiled by the driver on whatever comes after
CPP_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
# What is linked statically stays inside: a second CUDA runtime must not stand in for torch's, and of a second
# libstdc++, which some compilers bring, the half that torch finds and the half that we find do not work together.
LINK_FLAGS = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []


class WithoutExtension(Exception):
    """Why the extension cannot be built here."""


class BuildExtension(build_ext):
    """Compiles .cu files by nvcc itself; setuptools knows only C++."""

    def finalize_options(self):
        super().finalize_options()
        if self.inplace and self.extensions:
            # What was built against another torch, or with another CUDA or none, is not up to date, however new it is.
            nvcc = _cuda_compiler()
            cuda = "-".join([_release(nvcc), *_archs(nvcc)]) if nvcc else "none"
            self.build_lib = self.build_temp = os.path.join("build", f"torch-{_torch().__version__}-cuda-{cuda}")

    def build_extension(self, extension):
        kernels = [source for source in extension.sources if source.endswith(".cu")]
        extension.sources = [source for source in extension.sources if source not in kernels]
        for source in kernels:
            built = Path(self.build_temp, source).with_suffix(".cu.o")
            built.parent.mkdir(parents=True, exist_ok=True)
            command = [_nvcc(), "-c", source, "-o", str(built), "-std=c++20", "-O3", "--threads", str(os.cpu_count())]
            command += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra", *_targets(_archs(_nvcc()))]
            if "CXX" in os.environ:
                command += ["-ccbin", shlex.split(os.environ["CXX"])[0]]
            print(shlex.join(command), flush=True)
            subprocess.run(command, check=True)
            extension.extra_objects.append(str(built))
        super().build_extension(extension)


def extension() -> Extension:
    """`dida_kernels._C`, with CUDA kernels where they can be compiled. Raises WithoutExtension."""
    if os.environ.get("DIDA_BUILD") == "0":
        raise WithoutExtension("DIDA_BUILD=0")
    torch = _torch()
    _find_compiler()
    nvcc = _cuda_compiler()
    home = Path(torch.__file__).parent
    # A team of threads of torch's own: its headers ask for OpenMP, its library brings the runtime.
    parallel = ["-fopenmp"] if sys.platform == "linux" and torch.backends.openmp.is_available() else []
    built = Extension(
        "dida_kernels._C",
        sources=["csrc/ops.cpp", "csrc/bank_update_cpu.cpp"],
        depends=sorted(str(path) for path in Path("csrc").glob("*.*")),  # of .cu files setuptools knows nothing else
        language="c++",
        define_macros=[
            ("DIDA_TORCH", f'"{torch.__version__}"'),
            ("DIDA_CUDA", f'"{_release(nvcc) if nvcc else ""}"'),
            ("DIDA_CUDA_ARCHS", f'"{" ".join(_archs(nvcc)) if nvcc else ""}"'),
        ],
        extra_compile_args=[
            *CPP_FLAGS,
            *parallel,
            # As system headers, in which warnings are not ours.
            *(f"-isystem{home / 'include' / part}" for part in ("", "torch/csrc/api/include")),
        ],
        library_dirs=[str(home / "lib")],
        libraries=["torch", "torch_cpu", "c10"],
        extra_link_args=LINK_FLAGS,
    )
    if nvcc:
        headers, libraries = _toolkit(nvcc)
        built.sources += ["csrc/ops_cuda.cpp", "csrc/bank_update_cuda.cu"]
        built.extra_compile_args += [f"-isystem{headers}"]
        built.library_dirs += libraries
        built.libraries += ["c10_cuda", "cudart_static", "rt", "dl", "pthread"]
    return built


def _torch():
    try:
        import torch
    except ImportError as error:
        raise WithoutExtension(f"torch cannot be imported while building ({error})") from error
    return torch


def _find_compiler() -> None:
    """Settles on a C++ compiler: what CXX names, what built Python, or any."""
    chosen = os.environ.get("CXX") or sysconfig.get_config_var("CXX")
    if chosen and shutil.which(shlex.split(chosen)[0]):
        return
    fallback = None if "CXX" in os.environ else next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if fallback is None:
        raise WithoutExtension(f"there is no C++ compiler ({chosen or 'c++'} not found)")
    os.environ["CC"] = os.environ["CXX"] = fallback


def _cuda_compiler() -> str | None:
    """An nvcc, where torch has CUDA too and its kernels are wanted."""
    wanted = ARCHS not in os.environ or os.environ[ARCHS].split()
    return _nvcc() if wanted and _torch().version.cuda else None


def _nvcc() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return next(filter(None, map(shutil.which, ("nvcc", *(f"{home}/bin/nvcc" for home in homes if home)))), None)


def _release(nvcc: str) -> str:
    return re.search(r"release ([\d.]+)", _output(nvcc, "--version"))[1]


def _archs(nvcc: str) -> list[str]:
    known = [name.removeprefix("compute_") for name in _output(nvcc, "--list-gpu-arch").split()]
    if ARCHS not in os.environ:
        return [arch for arch in MACHINE_CODE if arch in known]
    wanted = os.environ[ARCHS].split()
    if unknown := [arch for arch in wanted if arch not in known]:
        raise SystemExit(f"{ARCHS}: expected some of {' '.join(known)}, which {nvcc} knows, got {' '.join(unknown)}")
    return wanted


def _targets(archs: list[str]) -> list[str]:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*targets, f"-gencode=arch=compute_{INTERMEDIATE},code=compute_{INTERMEDIATE}"]


def _toolkit(nvcc: str) -> tuple[str, list[str]]:
    """The folder of CUDA's headers and those of its libraries, from nvcc itself: it may be a link or a wrapper."""
    plan = _output(nvcc, "--dryrun", "-c", "any.cu")
    headers = re.search(r'^#\$ INCLUDES="-I([^"]+)"', plan, re.MULTILINE)[1]
    return headers, re.findall(r'"-L([^"]+)"', re.search(r"^#\$ LIBRARIES=.*$", plan, re.MULTILINE)[0])


def _output(*command: str) -> str:
    run = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run.stdout


def _extensions() -> list[Extension]:
    try:
        return [extension()]
    except WithoutExtension as reason:
        if os.environ.get("DIDA_BUILD") == "1":
            raise SystemExit(f"DIDA_BUILD=1, but dida_kernels._C cannot be built: {reason}") from reason
        print(
            f"dida_kernels._C is NOT built: {reason}. The package works without it, on its other backends.\n"
            "To build it, in an environment with torch and a C++ compiler: python setup.py build_ext --inplace",
            file=sys.stderr,
        )
        return []


setup(ext_modules=_extensions(), cmdclass={"build_ext": BuildExtension})
