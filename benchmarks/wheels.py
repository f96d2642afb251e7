"""Wheel and sdist: the wheel in an empty environment of every Python found, with the demo run from there.

    python benchmarks/wheels.py [--libraries 3.12=FOLDER ...] [--download] > benchmarks/results/wheels.log

Both are built from the tracked files alone, and the wheel again from the sdist, which has to be the same. The
dependencies of a Python come from a folder of site-packages that has them (this interpreter's own, or one that
``--libraries`` names), shared by a .pth file. With ``--download`` pip fetches them for all other Pythons, which takes
minutes and gigabytes each. Fails where the demo's tables from the wheel are not byte for byte those of the source tree
with the same Python and libraries, where a file is missing, or where setup.cfg's classifiers name a Python that was not
tried.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST, NEWEST = 11, 20
"""The minor versions of Python 3 that are looked for."""
BOTH = (
    "sharpscope/py.typed", "sharpscope/clip/miniworld_data/manifest.json", "sharpscope/present/report.html.j2",
    "sharpscope/present/report.js", "sharpscope/present/paper.mplstyle",
)  # fmt: skip
"""What wheel and sdist have to hold beside the code."""


def said(*command: str | Path, cwd: Path | None = None, **more: str) -> str:
    """What ``command`` prints; it ends this script where it fails."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean | {"OMP_NUM_THREADS": "1"} | more, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist) of the tracked files."""
    source, out = folder / "source", folder / "dist"
    for name in said("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    out.mkdir()
    for kind in ("wheel", "sdist"):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        said(sys.executable, "-W", "ignore", "-c", code, cwd=source)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def check_files(wheel: Path, sdist: Path) -> None:
    """Every module and data file is in both, nothing but the package in the wheel, and the sdist gives that wheel."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(said("git", "ls-files", "sharpscope", cwd=ROOT).splitlines())
    wanted = {name for name in tracked if (ROOT / name).is_file()} | set(BOTH)
    for what, names in (("wheel", inside), ("sdist", source)):
        if lost := sorted(wanted - names):
            sys.exit(f"the {what} lacks {', '.join(lost[:9])}")
    if strange := sorted(n for n in inside if not n.startswith(("sharpscope/", "sharpscope-"))):
        sys.exit(f"the wheel would install {', '.join(strange[:9])}")
    again = wheel.parent / "again"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    said(*pip, "--no-build-isolation", "--wheel-dir", again, sdist)
    if contents(next(again.glob("*.whl"))) != contents(wheel):
        sys.exit("the wheel that the sdist gives has other files than the wheel of the source tree")
    sizes = [f"{path.stat().st_size / 1e6:.1f} MB" for path in (wheel, sdist)]
    print(f"wheel: {len(inside)} files, {sizes[0]}; sdist: {sizes[1]}, gives the same wheel", flush=True)


def contents(wheel: Path) -> dict[str, bytes]:
    """The bytes of every file of a wheel but the list of their hashes."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def pythons() -> dict[str, str]:
    """3.X -> an interpreter that can make environments, of every version found."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for minor in range(OLDEST, NEWEST):
        version = f"3.{minor}"
        candidates = [
            *Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}"),
            shutil.which(f"python{version}"),
        ]
        for path in filter(None, candidates):
            works = subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True)
            if not works.returncode:
                found.setdefault(version, str(path))
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))


def environment(folder: Path, python: str, version: str, wheel: Path, libraries: Path | None) -> Path:
    """The bin folder of a new environment that holds the wheel, its dependencies shared or fetched."""
    said(python, "-m", "venv", folder)
    binaries, alone = folder / "bin", ["--no-deps", "--no-index"] if libraries else []
    if libraries is not None:
        (folder / f"lib/python{version}/site-packages/shared.pth").write_text(f"{libraries}\n")
    said(binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *alone, wheel)
    where = said(binaries / "python", "-c", "import sharpscope; print(sharpscope.__file__)", cwd=folder).strip()
    if not where.startswith(str(folder)):
        sys.exit(f"{version}: {where} was imported in place of the installed package")
    return binaries


def tables(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "tables").glob("*.csv"))}


def demo(command: Sequence[str | Path], out: Path, **more: str) -> tuple[dict[str, bytes], float]:
    """(the tables of the demo, seconds)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    said(*command, "demo", "--out", out, cwd=out.parent, **more)
    return tables(out), time.monotonic() - start


def tried(folder: Path, version: str, python: str, wheel: Path, libraries: Path | None) -> bool:
    """Whether the tables of the installed package are those of the source tree; also tells it."""
    binaries = environment(folder / "wheel", python, version, wheel, libraries)
    torch = said(binaries / "python", "-c", "import torch; print(torch.__version__)").strip()
    installed, seconds = demo([binaries / "sharpscope"], folder / "installed/run")
    # the same interpreter and libraries, and the source tree in place of the installed package
    source, _ = demo([binaries / "python", "-m", "sharpscope"], folder / "source/run", PYTHONPATH=str(ROOT))
    same = installed == source and bool(source)
    print(
        f"Python {version}, torch {torch}: demo from the wheel {seconds:.0f} s, {len(installed)} tables "
        f"{'byte for byte those of the source tree' if same else 'DIFFER from the source tree'}",
        flush=True,
    )
    return same


def main(libraries: Mapping[str, Path], download: bool) -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shared = {own: Path(sysconfig.get_paths()["purelib"]), **libraries}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    claimed = set(re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"]))
    with tempfile.TemporaryDirectory() as name:
        wheel, sdist = built(Path(name))
        check_files(wheel, sdist)
        done = {}
        for version, python in pythons().items():
            if version not in shared and not download:
                print(f"Python {version}: found, not tried (no --libraries {version}=FOLDER, no --download)")
                continue
            done[version] = tried(Path(name) / version, version, python, wheel, shared.get(version))
    if untried := sorted(claimed - done.keys()):
        sys.exit(f"setup.cfg's classifiers name {', '.join(untried)}, which were not tried here")
    if not all(done.values()):
        sys.exit("tables differ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="*", default=[], metavar="3.X=FOLDER", help="site-packages to share")
    parser.add_argument("--download", action="store_true", help="fetch the dependencies of all other Pythons")
    args = parser.parse_args()
    main({v: Path(p) for v, _, p in (text.partition("=") for text in args.libraries)}, args.download)
