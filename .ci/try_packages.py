"""Install the built wheel and source distribution, each where nothing is but what they declare, and try them.

    python .ci/try_packages.py dist

The libraries that they declare are links to those of the environment that runs this: what the metadata does not ask for
is not there, nor is the checkout, and nothing is downloaded. From the source distribution the extension must compile,
without CUDA kernels, whose compilation takes a minute and is part of every installation of the checkout.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

Libraries = dict[str, metadata.Distribution]

# Every module, so that a library that is used and not declared is missed.
IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path
import dida, dida_kernels
for package in (dida, dida_kernels):
    home = Path(package.__file__).parent
    assert home.is_relative_to(sys.prefix), f"imported from {home}, not from {sys.prefix}"
    assert (home / "py.typed").exists(), f"{home} holds no py.typed"
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        importlib.import_module(name)
    print(f"{package.__name__}: {len(names)} modules")
"""
REPORT = """
backends = dida_kernels.report()["bank_update"]
print(backends)
assert backends["cpp"] == "yes", "the extension is not there"
"""


def main(dist: Path) -> None:
    """Raises CalledProcessError for the first command that fails."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve()
        source = unpacked(sdist, home)
        libraries = asked_for(declared(wheel))

        python = environment(home / "of-wheel", libraries)
        pip_install(python, wheel)
        print(wheel.name, run(python, "-c", IMPORT_ALL, cwd=home), sep="\n")

        build_system = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]
        python = environment(home / "of-sdist", libraries | asked_for(build_system["requires"]))
        pip_install(python, sdist, "--no-build-isolation", DIDA_BUILD="1", DIDA_CUDA_ARCHS="")
        print(sdist.name, run(python, "-c", IMPORT_ALL + REPORT, cwd=home), sep="\n")
        for script in ("train.py", "eval.py"):
            print(run(python, script, "--help", cwd=source).splitlines()[0])


def unpacked(sdist: Path, folder: Path) -> Path:
    """The only folder of a source distribution, now below `folder`."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def declared(wheel: Path) -> list[str]:
    """The requirements in a wheel's metadata, those of its extras among them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        content = archive.read(name).decode()
    return [line.partition(": ")[2] for line in content.splitlines() if line.startswith("Requires-Dist: ")]


def asked_for(requirements: Iterable[str], extra: str = "") -> Libraries:
    """What `requirements` ask for of this environment, and what that asks for in turn, by name; `extra`: with those of
    one extra."""
    found: Libraries = {}
    waiting = [(Requirement(text), extra) for text in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        library = found[requirement.name] = metadata.distribution(requirement.name)
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) not in seen:
                seen.add((requirement.name, extra))
                waiting += [(Requirement(text), extra) for text in library.requires or ()]
    return found


def environment(folder: Path, libraries: Libraries) -> Path:
    """The interpreter of a new environment that holds links to these libraries, and not even pip."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for library in libraries.values():
        for top in {file.parts[0] for file in library.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():  # `nvidia` is shared by many
                (site / top).symlink_to(library.locate_file(top))
    return folder / "bin" / "python"


def pip_install(python: Path, package: Path, *options: str, **variables: str) -> None:
    pip = ("-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps")
    run(Path(sys.executable), *pip, *options, str(package.resolve()), cwd=python.parent, **variables)


def run(python: Path, *arguments: str, cwd: Path, **variables: str) -> str:
    """What Python prints where nothing points to this checkout."""
    strange = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [str(python), *arguments]
    return subprocess.run(command, check=True, cwd=cwd, env=strange, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
