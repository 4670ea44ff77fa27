"""The kernels of `bank_update` under the compiler's sanitizers; the CUDA ones too, executed on the CPU.

The kernels know nothing of torch, so a small program can call them with buffers of exactly the right length. CUDA's
threads become threads of the system (cuda_on_cpu.h). That lets the thread sanitizer find a missing barrier, and shows
on machines without a GPU that what it would compute agrees with the CPU.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
LAUNCH = {  # the two lines of the .cu that are not C++
    "kernel<<<grid, threads, 0, stream>>>(arguments...);": "(void)stream, run(kernel, grid, threads, arguments...);",
    "return cudaGetLastError();": "return cudaSuccess;",
}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")


def run(folder: Path, sanitizer: str, sources: list[Path], *flags: str) -> None:
    program = folder / "check"
    command = [COMPILER, "-std=c++20", "-O1", "-g1", f"-I{ROOT / 'csrc'}", f"-I{HERE}", f"-fsanitize={sanitizer}"]
    command += ["-fno-sanitize-recover=all", *flags, "-pthread", "-o", str(program)]
    sources = [*sources, HERE / "bank_update_check.cpp", ROOT / "csrc" / "bank_update_cpu.cpp"]
    subprocess.run([*command, *map(str, sources)], check=True)
    result = subprocess.run([program], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cpu_kernel(tmp_path, sanitizer):
    run(tmp_path, sanitizer, [])


@pytest.mark.parametrize("sanitizer", ["address,undefined", pytest.param("thread", marks=pytest.mark.slow)])
def test_cuda_kernels_on_the_cpu(tmp_path, sanitizer):
    wheels = Path(torch.__file__).parents[1] / "nvidia"
    folders = (*wheels.glob("cu*/include"), Path("/usr/local/cuda/include"))
    headers = next((folder for folder in folders if (folder / "crt/host_config.h").exists()), None)
    if headers is None:
        pytest.skip("no CUDA headers, neither in nvidia's wheels nor in /usr/local/cuda")
    kernels = (ROOT / "csrc" / "bank_update_cuda.cu").read_text()
    for cuda, cpp in LAUNCH.items():
        assert kernels.count(cuda) == 1
        kernels = kernels.replace(cuda, cpp)
    source = tmp_path / "kernels.cpp"
    source.write_text('#include "cuda_on_cpu.h"\n' + kernels)
    run(tmp_path, sanitizer, [source], f"-isystem{headers}", "-DDIDA_CUDA_ON_CPU")
