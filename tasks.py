#!/usr/bin/env python3
"""Every job of this repository, in one file.

    python3 tasks.py                    list the tasks
    python3 tasks.py digits             train on the handwritten digits, from a fresh clone to pictures
    python3 tasks.py test               install the package and run its tests
    python3 tasks.py test -- -k noise   what follows `--` is handed on, here to pytest
    python3 tasks.py lint types         several tasks, one after the other

A task first checks that all it needs is there and says at once what is missing (exit code 2). It then works
in a virtual environment of its own, .venv, which it makes where there is none; --env PATH (or the variable
FASTVAE_ENV) names another one. A torch that is already installed there is kept; for a machine without a GPU,
`--torch cpu` installs the small CPU build instead of the default one, which is several gigabytes large.
"""

# The standard library only, and nothing newer than the grammar and the modules of Python 3.6 down to the
# version check: an old interpreter has to get that far to say in a sentence that it is too old.

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

MINIMUM_PYTHON = (3, 11)

if sys.version_info < MINIMUM_PYTHON:
    sys.stderr.write(
        "error: Python %d.%d+ needed, this is %d.%d.%d (%s).\n"
        "       Get a newer one (https://www.python.org/downloads/) and start this file with it:\n"
        "       python3.12 tasks.py\n" % (MINIMUM_PYTHON + sys.version_info[:3] + (sys.executable,))
    )
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"

# What the tests need besides the installed package. Not python/ and rust/: test-wheel runs without them.
TEST_FILES = (
    *("tests", "benches", "examples", "docs"),
    *("tasks.py", "pyproject.toml", "Cargo.toml", "README.md", "CHANGELOG.md"),
)


class MissingError(Exception):
    """Something that a person has to install or correct first."""


class CommandError(Exception):
    """A command that failed; what it printed explains it."""


# --------------------------------------------------------------------------------------------- project files


def read_toml(name: str) -> Dict[str, Any]:
    import tomllib  # noqa: PLC0415 (not there before Python 3.11)

    with open(ROOT / name, "rb") as file:
        return tomllib.load(file)


def build_requirements() -> List[str]:
    """Look up what builds the package."""
    return list(read_toml("pyproject.toml")["build-system"]["requires"])


def requirement(package: str) -> str:
    """Look up the versions of a package that this project takes, as pip wants it: ``torch>=2.10``."""
    project = read_toml("pyproject.toml")["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for line in group:
            if re.split(r"[<>=!~\[ ;]", line)[0] == package:
                return str(line)
    raise LookupError(f"pyproject.toml does not name {package}")


def minimum_rust() -> str:
    return str(read_toml("Cargo.toml")["workspace"]["package"]["rust-version"])


# -------------------------------------------------------------------------------------------------- commands


def say(text: str) -> None:
    print(text, flush=True)


def run(command: Sequence[object], variables: Mapping[str, str], cwd: Path = ROOT) -> None:
    """Show a command and run it."""
    words = [str(word) for word in command]
    say("$ " + (subprocess.list2cmdline(words) if WINDOWS else " ".join(map(shlex.quote, words))))
    try:
        process = subprocess.Popen(words, cwd=cwd, env=dict(variables))
    except OSError as error:
        raise CommandError(f"cannot start {words[0]}: {error}") from error
    # Not subprocess.run: it kills the child a quarter of a second after Ctrl-C, and a training run that was
    # interrupted needs longer than that to write what it has.
    interrupted = False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    if process.returncode != 0:
        raise CommandError(f"this command failed with exit code {process.returncode}: {' '.join(words)}")


def run_each(*checks: Callable[[], None]) -> None:
    """Run all of several checks, and fail if one did: a person wants to see every complaint at once."""
    failures = []
    for check in checks:
        try:
            check()
        except CommandError as error:
            failures.append(str(error))
    if failures:
        raise CommandError("\n       ".join(failures))


def output_of(command: Sequence[object], variables: Mapping[str, str]) -> Optional[str]:
    """Run a command quietly and return what it prints, or None where it fails."""
    words = [str(word) for word in command]
    # Resolved here, since Popen looks a bare name up on this process's PATH and not on the one given.
    words[0] = shutil.which(words[0], path=variables.get("PATH")) or words[0]
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def plain_variables() -> Dict[str, str]:
    """Copy this process's variables, less those that would mix another Python in."""
    variables = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__"):
        variables.pop(name, None)
    variables["PIP_USER"] = "0"
    variables["PIP_NO_INPUT"] = "1"
    # rustup puts its folder on the PATH of shells that start later, not of the one it was called from.
    rust = Path(variables.get("CARGO_HOME") or Path.home() / ".cargo") / "bin"
    variables["PATH"] = os.pathsep.join([variables.get("PATH", os.defpath), str(rust)])
    return variables


# ----------------------------------------------------------------------------------------------- environment


class Environment:
    """A Python environment in a folder: a virtual one, or a conda one that is already there."""

    def __init__(self, path: Path, torch: Optional[str] = None) -> None:
        self.path = path
        self.torch = torch

    @property
    def python(self) -> Path:
        """Its interpreter, or where that will be."""
        places = ["Scripts/python.exe", "python.exe"] if WINDOWS else ["bin/python"]
        return next((self.path / place for place in places if self._is_there(place)), self.path / places[0])

    @property
    def exists(self) -> bool:
        """Whether it was made; it may still be broken."""
        return self._is_there(self.python)

    def _is_there(self, place: object) -> bool:
        # A link to an interpreter that was removed counts: such an environment is broken, not absent.
        return os.path.lexists(self.path / str(place))

    def script(self, name: str) -> Path:
        """Path of a command that is installed in it."""
        return self.path / "Scripts" / f"{name}.exe" if WINDOWS else self.path / "bin" / name

    def problems(self) -> Iterator[str]:
        """Say why it cannot be used or made."""
        debian = "on Debian and Ubuntu: sudo apt install python{}.{}-venv".format(*sys.version_info)
        if not self.exists:
            if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
                yield f"{self.path} is no Python environment and is not empty: name another with --env"
            elif not all_found("venv", "ensurepip"):
                yield f"pip and venv are missing from this Python ({sys.executable}); {debian}"
            return
        version = output_of(
            [self.python, "-c", "import sys; print(*sys.version_info[:2])"], plain_variables()
        )
        if version is None:
            yield f"the environment {self.path} is broken, its Python does not start: remove that folder"
        elif tuple(map(int, version.split())) < MINIMUM_PYTHON:
            wanted, found = ".".join(map(str, MINIMUM_PYTHON)), version.replace(" ", ".")
            yield f"Python {wanted}+ needed, the environment {self.path} has {found}: name another with --env"
        elif not self.has("pip") and not self.has("ensurepip"):
            yield f"pip is missing from the environment {self.path}; {debian}"

    def has(self, module: str) -> bool:
        """Whether a module can be imported in it."""
        return output_of([self.python, "-c", f"import {module}"], plain_variables()) is not None

    def variables(self) -> Dict[str, str]:
        """Variables as after activating it."""
        variables = plain_variables()
        variables["VIRTUAL_ENV"] = str(self.path)
        variables["PATH"] = os.pathsep.join([str(self.script("python").parent), variables["PATH"]])
        variables["PYO3_PYTHON"] = str(self.python)
        return variables

    def run(self, *arguments: object) -> None:
        """Run its interpreter, with ``-m pytest`` for example."""
        run([self.python, *arguments], self.variables())

    def make(self) -> None:
        """Make it where it is not there yet."""
        if not self.exists:
            run([sys.executable, "-m", "venv", "--prompt", "fastvae", self.path], plain_variables())
        if not self.has("pip"):
            self.run("-m", "ensurepip", "--upgrade")

    def pip_install(self, *arguments: object) -> None:
        """Install with pip, which leaves alone what already satisfies a requirement: torch above all."""
        self.run("-m", "pip", "install", "--disable-pip-version-check", *arguments)

    def install_torch(self) -> None:
        """Install the build of torch that was asked for, if one was."""
        if self.torch:
            index = f"https://download.pytorch.org/whl/{self.torch}"
            self.pip_install("--index-url", index, requirement("torch"))

    def install_tool(self, package: str) -> None:
        """Install one of the tools of the extra ``dev`` without the rest, which takes minutes."""
        self.make()
        self.pip_install("--quiet", requirement(package))

    def install_package(self, extra: str, editable: bool = False) -> None:
        """Build the package and install it with an extra: a copy, so that not the working tree is tested."""
        self.make()
        self.install_torch()
        self.pip_install("--quiet", *build_requirements())
        say("Building fastvae with cargo and installing what it needs: minutes the first time, then seconds.")
        # In a build environment of its own pip would need the network again each time.
        source = f".[{extra}]"
        self.pip_install("--no-build-isolation", *(["--editable"] if editable else []), source)

    def install_wheel(self, wheel: Path, extra: str) -> None:
        """Install a wheel with an extra."""
        self.make()
        self.install_torch()
        self.pip_install(f"{wheel}[{extra}]")
        # By force: a wheel that was built again has the version number of the one before.
        self.pip_install("--no-deps", "--force-reinstall", wheel)


def all_found(*modules: str) -> bool:
    return None not in map(importlib.util.find_spec, modules)


# ------------------------------------------------------------------------------------------------------ Rust


def rust_problems(*components: str) -> Iterator[str]:
    """Say why the Rust code cannot be built, or why one of cargo's components cannot run."""
    variables = plain_variables()
    minimum = minimum_rust()
    for tool in ("cargo", "rustc"):
        place = shutil.which(tool, path=variables["PATH"])
        if place is None:
            yield f"{tool} is missing: install Rust {minimum}+ from https://rustup.rs"
            return
        printed = output_of([place, "--version"], variables)
        version = re.match(tool + r" (\d+)\.(\d+)", printed or "")
        if version is None:
            yield f"`{place} --version` fails: run `rustup default stable`, or install Rust {minimum}+ anew"
            return
        if tuple(map(int, version.groups())) < tuple(map(int, minimum.split("."))):
            newer = "run `rustup update`, or install a newer one from https://rustup.rs"
            yield f"Rust {minimum}+ needed, this is {printed} ({place}): {newer}"
            return
    if not WINDOWS and not any(shutil.which(name, path=variables["PATH"]) for name in ("cc", "gcc", "clang")):
        get = "sudo apt install build-essential, or on a Mac xcode-select --install"
        yield f"a C linker (cc) is missing, which Rust needs: {get}"
    for component, package in ((name, "rustfmt" if name == "fmt" else name) for name in components):
        if output_of(["cargo", component, "--version"], variables) is None:
            yield f"cargo {component} is missing: run `rustup component add {package}`"


def nightly_problems() -> Iterator[str]:
    """Say why the sanitizers cannot run: only nightly Rust has them, and not for every system."""
    get = "run `rustup toolchain install nightly --component miri,rust-src`"
    if nightly_host() is None:
        yield f"the nightly toolchain of Rust is missing, which alone has sanitizers: {get}"
    elif not output_of(["cargo", "+nightly", "--version"], plain_variables()):
        yield f"`cargo +nightly --version` fails: {get}"
    if WINDOWS:
        yield "Rust has AddressSanitizer on Linux and macOS: run this task there, or in WSL"


def nightly_host() -> Optional[str]:
    """Ask the nightly compiler for the platform it runs on; None where there is none."""
    printed = output_of(["rustc", "+nightly", "-vV"], plain_variables())
    host = re.search(r"^host: (\S+)$", printed or "", re.MULTILINE)
    return host.group(1) if host else None


def miri_problem() -> Optional[str]:
    """Say why Miri cannot run, if it cannot; it builds a standard library of its own."""
    variables = plain_variables()
    sysroot = output_of(["rustc", "+nightly", "--print", "sysroot"], variables) or ""
    source = Path(sysroot, "lib", "rustlib", "src", "rust", "library")
    if output_of(["cargo", "+nightly", "miri", "--version"], variables) is not None and source.is_dir():
        return None
    return "Miri is missing: run `rustup component add miri rust-src --toolchain nightly`"


def cargo(*arguments: str) -> None:
    run(["cargo", *arguments], {**plain_variables(), "PYO3_PYTHON": sys.executable})


def locked() -> List[str]:
    """On a build server, insist on the versions in Cargo.lock; a person may be changing them."""
    return ["--locked"] if os.environ.get("CI") else []


# ----------------------------------------------------------------------------------------------------- tasks


class Job:
    """What was asked for on the command line."""

    def __init__(
        self,
        environment: Environment,
        own: bool = True,
        wheel: Optional[Path] = None,
        rest: Sequence[str] = (),
    ) -> None:
        self.environment = environment
        self.own = own
        """Whether the environment is the repository's own, not one that was named."""
        self.wheel = wheel
        self.rest = list(rest)


Check = Callable[[Job], Iterator[str]]
Action = Callable[[Job], None]
TASKS: Dict[str, Tuple[Action, Sequence[Check]]] = {}


def task(name: str, *checks: Check) -> Callable[[Action], Action]:
    """Register a function as a task, with the checks that come before it."""

    def register(action: Action) -> Action:
        TASKS[name] = (action, checks)
        return action

    return register


def environment(job: Job) -> Iterator[str]:
    return job.environment.problems()


def rust(_: Job) -> Iterator[str]:
    return rust_problems()


def rustfmt(_: Job) -> Iterator[str]:
    return rust_problems("fmt")


def clippy(_: Job) -> Iterator[str]:
    return rust_problems("clippy")


def nightly(_: Job) -> Iterator[str]:
    return nightly_problems()


def rust_or_wheel(job: Job) -> Iterator[str]:
    if job.wheel is None:
        yield from rust_problems()
    else:
        try:
            only_wheel(job.wheel)
        except MissingError as missing:
            yield str(missing)


def bash(_: Job) -> Iterator[str]:
    if shutil.which("bash", path=plain_variables()["PATH"]) is None:
        yield "bash is missing, which this task's script is for: run it on Linux"


@task("digits", environment, rust)
def digits(job: Job) -> None:
    """Install the package and train it on handwritten digits; pictures in runs/digits."""
    job.environment.install_package("all")
    folder = Path("runs", "digits")
    command = [job.environment.script("fastvae"), "train", "digits", "--output-dir", folder, *job.rest]
    run(command, job.environment.variables())
    pictures = sorted((ROOT / folder).glob("*.png"))
    if not pictures:
        raise CommandError(f"there are no pictures in {ROOT / folder}")
    say("\nThe pictures:")
    for picture in pictures:
        say(f"  {picture}")


@task("test", environment, rust)
def test(job: Job) -> None:
    """Install the package and run its tests (after --: options of pytest)."""
    job.environment.install_package("test")
    job.environment.run("-m", "pytest", *job.rest)


@task("develop", environment, rust)
def develop(job: Job) -> None:
    """Install the package editable and with all tools; again after each change in rust/."""
    job.environment.install_package("dev", editable=True)
    activate = (
        f"& {job.environment.path}\\Scripts\\Activate.ps1"
        if WINDOWS
        else f". {job.environment.path}/bin/activate"
    )
    say(f"\nChanges in python/ now count at once. To work in the environment: {activate}")


@task("format", environment, rustfmt)
def format_code(job: Job) -> None:
    """Format both languages in place."""
    job.environment.install_tool("ruff")
    job.environment.run("-m", "ruff", "check", "--select", "I", "--fix", ".")
    job.environment.run("-m", "ruff", "format", ".")
    cargo("fmt", "--all")


@task("lint", environment, rustfmt, clippy)
def lint(job: Job) -> None:
    """Look for mistakes and for format in both languages, changing nothing."""
    job.environment.install_tool("ruff")
    run_each(
        lambda: job.environment.run("-m", "ruff", "check", "."),
        lambda: job.environment.run("-m", "ruff", "format", "--check", "."),
        lambda: cargo("fmt", "--all", "--check"),
        lambda: cargo("clippy", "--workspace", "--all-targets", *locked(), "--", "-D", "warnings"),
    )


@task("types", environment, rust)
def types(job: Job) -> None:
    """Check the types (mypy, strict) and the stub of the Rust module against the built one."""
    job.environment.install_package("dev")
    stubtest = ["-m", "mypy.stubtest", "fastvae._core", "--mypy-config-file", "pyproject.toml"]
    # The stub of the working tree and not the installed copy, so that an error names the file to correct.
    variables = {**job.environment.variables(), "MYPYPATH": str(ROOT / "python")}
    run_each(
        lambda: job.environment.run("-m", "mypy"),
        lambda: job.environment.run("-m", "mypy", "tasks.py", "benches", "examples", "docs"),
        lambda: run([job.environment.python, *stubtest], variables),
    )


@task("rust-test", rust)
def rust_test(job: Job) -> None:
    """Run the tests of the Rust crates (after --: options of cargo test)."""
    cargo("test", "--workspace", *locked(), *job.rest)


@task("sanitize", rust, nightly)
def sanitize(job: Job) -> None:
    """Run the kernels' tests under AddressSanitizer and Miri (after --: options of cargo test)."""
    variables = plain_variables()
    # Both take many times as long; who wants more than a few cases of each property says how many.
    few = variables.get("PROPTEST_CASES")
    # With a target named, build scripts and macros have no such flags, for which they lack a runtime.
    tests = ("-p", "fastvae-core", "--target", str(nightly_host()), *locked(), *job.rest)
    address = {
        **variables,
        "PROPTEST_CASES": few or "6",
        "RUSTFLAGS": f"{variables.get('RUSTFLAGS', '')} -Zsanitizer=address".strip(),
        "CARGO_TARGET_DIR": str(ROOT / "target" / "address"),
    }
    # Not ThreadSanitizer: it needs a standard library of its own, and Miri finds data races too.
    miri = {
        **variables,
        "PROPTEST_CASES": few or "1",
        # The truth that the tests know is the standard library's, which Miri makes a little wrong on purpose.
        "MIRIFLAGS": " ".join(
            (variables.get("MIRIFLAGS", ""), "-Zmiri-env-forward=PROPTEST_CASES -Zmiri-deterministic-floats")
        ).strip(),
    }
    missing = miri_problem()
    checks = [lambda: run(["cargo", "+nightly", "test", *tests], address)]
    if missing is None:
        checks.append(lambda: run(["cargo", "+nightly", "miri", "test", *tests], miri))
    run_each(*checks)
    if missing is not None:
        say(f"\nOnly AddressSanitizer was run, at every level. {missing}")


@task("bench", environment, rust)
def bench(job: Job) -> None:
    """Measure speed against torch, and accuracy (after --: --quick or --output-dir)."""
    job.environment.install_package("bench")
    for name in ("bench_kernels", "bench_latent", "accuracy"):
        job.environment.run(f"benches/{name}.py", *job.rest)


@task("bench-training", environment, rust)
def bench_training(job: Job) -> None:
    """Train beside plain torch and pythae (after --: options of benches/bench_training.py)."""
    job.environment.install_package("bench,peers")
    job.environment.run("benches/bench_training.py", *job.rest)


@task("gpu", environment, bash, rust_or_wheel)
def gpu(job: Job) -> None:
    """Run all that needs a CUDA device (after --: parts of benches/gpu.sh; --wheel: without Rust)."""
    if job.wheel:
        job.environment.install_wheel(only_wheel(job.wheel), "gpu")
    else:
        job.environment.install_package("gpu")
    variables = {**job.environment.variables(), "PYTHON": str(job.environment.python)}
    run(["bash", "benches/gpu.sh", *job.rest], variables)


@task("wheel", environment, rust)
def wheel(job: Job) -> None:
    """Build the wheel for this machine into dist/."""
    say(f"\n{build_wheel(job.environment, ROOT / 'dist')}")


@task("test-wheel", environment, rust_or_wheel)
def test_wheel(job: Job) -> None:
    """Test a wheel where neither Rust nor the source is found (--wheel: one that is already built)."""
    target = job.environment
    if job.own:
        target = Environment(ROOT / ".venv-wheel", target.torch)
        shutil.rmtree(target.path, ignore_errors=True)
    with scratch_folder() as scratch:
        # Built into a folder that is empty before, so that no older wheel is tested.
        built = only_wheel(job.wheel) if job.wheel else build_wheel(job.environment, scratch / "dist")
        target.install_wheel(built, "test")
        away = copy_tests(scratch / "copy")
        variables = target.variables()
        variables["PATH"] = path_without_rust(variables["PATH"], scratch / "path")
        check = scratch / "from_wheel.py"
        check.write_text(FROM_WHEEL, encoding="utf-8")
        run([target.python, check, target.path], variables, cwd=away)
        run([target.python, "-m", "pytest", *job.rest], variables, cwd=away)
    if job.own:
        shutil.rmtree(target.path, ignore_errors=True)


@task("all", environment, rustfmt, clippy)
def everything(job: Job) -> None:
    """Run lint, types, rust-test, test and test-wheel: what a change has to pass."""
    for step in (lint, types, rust_test, test, test_wheel):
        step(Job(job.environment, job.own))


# ---------------------------------------------------------------------------------------------------- wheels

# Run where the tests will run: fails where they would test something else than the wheel.
FROM_WHEEL = """
import pathlib, shutil, sys
import fastvae, fastvae._core
home = pathlib.Path(sys.argv[1]).resolve()
for module in (fastvae, fastvae._core):
    place = pathlib.Path(module.__file__).resolve()
    if home not in place.parents:
        sys.exit(f"error: {module.__name__} is imported from {place}, not from {home}")
for tool in ("cargo", "rustc"):
    if shutil.which(tool):
        sys.exit(f"error: {shutil.which(tool)} is still on the PATH")
print(f"{fastvae._core.__file__}; no cargo, no rustc")
"""


def build_wheel(builder: Environment, folder: Path) -> Path:
    """Build the wheel with an environment's Python and put it into a folder."""
    builder.make()
    builder.pip_install("--quiet", *build_requirements())
    with scratch_folder() as scratch:
        builder.run("-m", "maturin", "build", "--release", *locked(), "--out", scratch)
        built = only_wheel(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(str(built), str(folder / built.name)))


def only_wheel(place: Path) -> Path:
    """Return the wheel at a path: a wheel, or a folder with one."""
    wheels = sorted(place.glob("fastvae-*.whl")) if place.is_dir() else [place]
    if len(wheels) != 1 or not wheels[0].is_file():
        found = f"has {len(wheels)}" if place.is_dir() else "is not there"
        raise MissingError(f"--wheel takes a wheel or a folder with one, and {place} {found}")
    return wheels[0].resolve()


def copy_tests(folder: Path) -> Path:
    """Copy what the tests need to where the package's source cannot be imported."""
    folder.mkdir()
    for name in TEST_FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
    return folder


def path_without_rust(path: str, links: Path) -> str:
    """Rewrite a PATH so that cargo and rustc are not found and all else is.

    They may be in /usr/bin, so a folder that holds them is replaced by links to its other files; on Windows,
    where rustup has a folder of its own and making links needs rights, it is left out.
    """
    kept = []
    for number, folder in enumerate(filter(None, path.split(os.pathsep))):
        if not any(shutil.which(tool, path=folder) for tool in ("cargo", "rustc")):
            kept.append(folder)
        elif not WINDOWS:
            kept.append(str(links / str(number)))
            (links / str(number)).mkdir(parents=True)
            for entry in Path(folder).iterdir():
                if not entry.name.startswith(("cargo", "rust")):
                    (links / str(number) / entry.name).symlink_to(entry)
    return os.pathsep.join(kept)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    # Windows may keep a library open for a moment longer than the process that used it.
    with tempfile.TemporaryDirectory(prefix="fastvae-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


# ---------------------------------------------------------------------------------------------- command line


def parse(argv: Sequence[str]) -> Tuple[List[str], Job]:
    """Read the command line: the tasks, and what they work with."""
    words, rest = list(argv), []
    if "--" in words:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1 :]
    width = max(map(len, TASKS))
    lines = [f"  {name.ljust(width)}  {action.__doc__}" for name, (action, _) in TASKS.items()]
    parser = argparse.ArgumentParser(
        prog="python3 tasks.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["tasks:", *lines]),
        allow_abbrev=False,
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="one or more of the tasks below")
    parser.add_argument("--env", metavar="PATH", help="the environment to use or make")
    parser.add_argument("--torch", metavar="BUILD", help="install torch's build for cpu, cu130, ...")
    parser.add_argument(
        "--wheel", metavar="PATH", type=Path, help="for test-wheel, gpu: a wheel that is built"
    )
    options = parser.parse_intermixed_args(words)
    if not options.tasks:
        parser.print_help()
        parser.exit(0)
    for name in options.tasks:
        if name not in TASKS:
            parser.error(f"there is no task {name!r}, only {', '.join(TASKS)}")
    named = options.env or os.environ.get("FASTVAE_ENV")
    path = Path(os.path.abspath(os.path.expanduser(named))) if named else ROOT / ".venv"
    return options.tasks, Job(Environment(path, options.torch), not named, options.wheel, rest)


def main(argv: Sequence[str]) -> int:
    names, job = parse(argv)
    # A dictionary drops what two checks both say and keeps the order.
    missing = list(dict.fromkeys(line for name in names for check in TASKS[name][1] for line in check(job)))
    if missing:
        for line in missing:
            print(f"error: {line}.", file=sys.stderr)
        return 2
    start = time.monotonic()
    try:
        for name in names:
            TASKS[name][0](job)
    except (CommandError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    say(f"\n{' '.join(names)}: done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
