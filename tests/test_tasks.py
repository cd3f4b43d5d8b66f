"""The task file: it says what is missing before it does anything, and never works with the wrong thing."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="uses shell scripts as stand-ins")


@pytest.fixture
def tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a task would run, in order; none of them is."""
    ran: list[list[str]] = []
    monkeypatch.setattr(tasks, "run", lambda command, *_, **__: ran.append([str(word) for word in command]))
    return ran


def _program(folder: Path, name: str, prints: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH: Rust of today and a linker."""
    folder = tmp_path / "tools"
    for name, prints in (("cargo", "cargo 99.0.0 (x)"), ("rustc", "rustc 99.0.0 (x)"), ("cc", "")):
        _program(folder, name, prints)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "no-cargo-home"))
    monkeypatch.delenv("FASTVAE_ENV", raising=False)
    return folder


# ------------------------------------------------------------------------------------------- what is missing


def test_the_grammar_is_that_of_python_3_6() -> None:
    # So that an old interpreter gets as far as the sentence that names the version that is needed.
    ast.parse((ROOT / "tasks.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_modules_newer_than_3_6_are_imported_after_the_version_check() -> None:
    tree = ast.parse((ROOT / "tasks.py").read_text(encoding="utf-8"))
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported <= {
        *("argparse", "contextlib", "importlib.util", "os", "re", "shlex", "shutil", "subprocess", "sys"),
        *("tempfile", "time", "pathlib", "typing"),
    }


def test_an_old_python_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    source = (ROOT / "tasks.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        exec(compile(source, "tasks.py", "exec"), {"__name__": "tasks"})
    assert stopped.value.code == 2
    assert "Python 3.11+ needed, this is 3.10.4" in capsys.readouterr().err


def test_the_versions_asked_for_are_those_of_the_project_files(tasks: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, tasks.MINIMUM_PYTHON))
    assert tasks.requirement("torch") in project["dependencies"]
    assert tasks.requirement("ruff") in project["optional-dependencies"]["dev"]
    with pytest.raises(LookupError, match="does not name tensorflow"):
        tasks.requirement("tensorflow")
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    assert tasks.minimum_rust() == cargo["workspace"]["package"]["rust-version"]


@POSIX
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "cargo").unlink(),
            r"cargo is missing: install Rust \d\.\d+\+ from https://rustup.rs",
        ),
        (lambda folder: (folder / "rustc").unlink(), "rustc is missing"),
        (
            lambda folder: _program(folder, "cargo", "cargo 1.2.3 (x)"),
            r"Rust \d\.\d+\+ needed, this is cargo 1\.2\.3",
        ),
        (
            lambda folder: _program(folder, "rustc", "rustc 1.2.3 (x)"),
            r"Rust \d\.\d+\+ needed, this is rustc 1\.2\.3",
        ),
        (lambda folder: (folder / "cargo").write_text("#!/bin/sh\nexit 1\n"), "rustup default stable"),
        (lambda folder: (folder / "cc").unlink(), "C linker"),
    ],
)
def test_missing_rust_is_said_before_any_work(
    tasks: ModuleType,
    tools: Path,
    *,
    commands: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change,
    message: str,
) -> None:
    environment = tmp_path / "env"
    assert tasks.main(["rust-test"]) == 0
    commands.clear()
    change(tools)
    for name in ("digits", "test", "develop", "wheel", "types"):
        assert tasks.main([name, "--env", str(environment)]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("error:") == 1
    assert commands == []
    assert not environment.exists()


@POSIX
def test_everything_missing_is_said_at_once(
    tasks: ModuleType,
    tools: Path,
    *,
    commands: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tools / "cargo").unlink()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name)
    )
    assert tasks.main(["test", "--env", str(tmp_path / "env")]) == 2
    error = capsys.readouterr().err
    assert "cargo is missing" in error
    assert "pip and venv are missing" in error
    assert "sudo apt install python3" in error
    assert commands == []


@POSIX
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3 10", "Python 3.11+ needed, the environment {} has 3.10"),
        ("", "{} is broken, its Python does not start"),
    ],
)
def test_an_environment_that_cannot_be_used(
    tasks: ModuleType,
    tools: Path,
    tmp_path: Path,
    *,
    capsys: pytest.CaptureFixture[str],
    version: str,
    message: str,
) -> None:
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    if version:
        _program(environment / "bin", "python", version)
    else:
        (environment / "bin" / "python").symlink_to(tmp_path / "removed")
    assert tasks.main(["test", "--env", str(environment)]) == 2
    assert message.format(environment) in capsys.readouterr().err


def test_a_folder_with_other_things_is_not_made_an_environment(
    tasks: ModuleType, commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert tasks.main(["lint", "--env", str(tmp_path)]) == 2
    assert "is no Python environment and is not empty" in capsys.readouterr().err
    assert commands == []


def test_a_task_that_does_not_exist(tasks: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tasks.main(["tset"])
    assert stopped.value.code == 2
    assert "no task 'tset'" in capsys.readouterr().err


def test_without_a_task_all_are_listed(tasks: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tasks.main([])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for name in (
        "digits",
        "test",
        "format",
        "lint",
        "types",
        "rust-test",
        "sanitize",
        "bench",
        "bench-training",
        "gpu",
        "wheel",
        "test-wheel",
        "develop",
    ):
        assert re.search(rf"^  {name} +[A-Z].+\.$", printed, re.MULTILINE)


# ------------------------------------------------------------------------------------------------- what runs


def _pips(commands: list[list[str]]) -> list[list[str]]:
    return [command[4:] for command in commands if command[1:4] == ["-m", "pip", "install"]]


@POSIX
def test_the_tests_run_against_an_installed_copy(
    tasks: ModuleType, tools: Path, commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "python"))
    environment = tmp_path / "env"
    assert tasks.main(["test", "--env", str(environment), "--", "-k", "noise"]) == 0
    python = str(environment / "bin" / "python")
    assert commands[0] == [sys.executable, "-m", "venv", "--prompt", "fastvae", str(environment)]
    assert commands[-1] == [python, "-m", "pytest", "-k", "noise"]
    assert _pips(commands)[-1][-1] == ".[test]"
    assert all("--editable" not in words for words in _pips(commands))
    assert "PYTHONPATH" not in tasks.Environment(environment).variables()


@POSIX
def test_torch_is_installed_only_by_its_range(
    tasks: ModuleType, tools: Path, commands: list[list[str]], tmp_path: Path
) -> None:
    # pip keeps what satisfies a range, unless it is told to upgrade or to reinstall.
    assert tasks.main(["test", "--env", str(tmp_path / "env")]) == 0
    for words in _pips(commands):
        assert not {"--upgrade", "-U", "--force-reinstall", "--ignore-installed"} & set(words)
        assert not any(word.startswith("torch") for word in words)
    commands.clear()
    assert tasks.main(["test", "--torch", "cpu", "--env", str(tmp_path / "env")]) == 0
    torch = _pips(commands)[0]
    assert torch[-3:] == ["--index-url", "https://download.pytorch.org/whl/cpu", tasks.requirement("torch")]


@POSIX
def test_a_failing_command_fails_the_task(
    tasks: ModuleType, tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _program(tools, "cargo", "cargo 99.0.0 (x)")
    with (tools / "cargo").open("a") as file:
        file.write('[ "$1" = --version ] || exit 101\n')
    assert tasks.main(["rust-test"]) == 1
    assert "failed with exit code 101: cargo test --workspace" in capfd.readouterr().err


def _nightly(tools: Path, sysroot: Path) -> None:
    """A nightly compiler that says what it runs on and where it is."""
    (tools / "rustc").write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  "+nightly -vV") echo "host: a-b-c" ;;\n'
        f'  "+nightly --print sysroot") echo "{sysroot}" ;;\n'
        '  *) echo "rustc 99.0.0 (x)" ;;\n'
        "esac\n"
    )


@POSIX
def test_sanitizers_need_the_nightly_toolchain(
    tasks: ModuleType, tools: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tasks.main(["sanitize"]) == 2
    assert "run `rustup toolchain install nightly --component miri,rust-src`" in capsys.readouterr().err
    assert commands == []


@POSIX
@pytest.mark.parametrize("miri", [False, True])
def test_the_kernels_run_under_each_sanitizer_that_is_there(
    tasks: ModuleType,
    tools: Path,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    miri: bool,
) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(tasks, "run", lambda command, variables: seen.append((command, variables)))
    monkeypatch.delenv("PROPTEST_CASES", raising=False)
    _nightly(tools, tmp_path)
    if miri:
        (tmp_path / "lib" / "rustlib" / "src" / "rust" / "library").mkdir(parents=True)
    assert tasks.main(["sanitize", "--", "--lib"]) == 0
    arguments = ["test", "-p", "fastvae-core", "--target", "a-b-c", *tasks.locked(), "--lib"]
    (address, variables), *rest = seen
    assert address == ["cargo", "+nightly", *arguments]
    assert variables["RUSTFLAGS"].endswith("-Zsanitizer=address")
    # Not the folder of the other tasks: each change of flags would build everything anew.
    assert variables["CARGO_TARGET_DIR"] == str(ROOT / "target" / "address")
    assert [command for command, _ in rest] == ([["cargo", "+nightly", "miri", *arguments]] if miri else [])
    printed = capsys.readouterr().out
    hint = "Miri is missing: run `rustup component add miri rust-src --toolchain nightly`"
    assert (hint in printed) is not miri
    assert all(int(variables["PROPTEST_CASES"]) < 24 for _, variables in seen)


@POSIX
def test_an_interrupted_child_may_finish_its_work(tmp_path: Path) -> None:
    # A run that is interrupted writes what it has, and needs longer for it than subprocess.run would wait.
    child = tmp_path / "child.py"
    child.write_text(
        "import sys, time\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    print('written', flush=True)\n"
        "    sys.exit(130)\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import os, tasks; "
        f"tasks.TASKS['wait'] = (lambda job: tasks.run([sys.executable, {str(child)!r}], os.environ), ()); "
        "sys.exit(tasks.main(['wait']))"
    )
    command = [sys.executable, "-B", "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    with process.stdout as output:
        while output.readline().strip() != "ready":
            pass
        # Let the parent reach its wait; it is the terminal's Ctrl-C that reaches both.
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert output.read().strip() == "written"
    assert process.wait(timeout=30) == 130


# ---------------------------------------------------------------------------------------------------- wheels


@POSIX
def test_rust_disappears_from_the_path_and_nothing_else(tasks: ModuleType, tmp_path: Path) -> None:
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    for name in ("cargo", "rustc", "cargo-clippy", "cc"):
        _program(mixed, name, name)
    _program(other, "git", "git")
    path = tasks.path_without_rust(os.pathsep.join([str(mixed), "", str(other)]), tmp_path / "links")
    found = [
        tasks.shutil.which(name, path=path) is not None
        for name in ("cargo", "rustc", "cargo-clippy", "cc", "git")
    ]
    assert found == [False, False, False, True, True]


def test_a_wheel_is_one_file_or_the_only_one_of_a_folder(tasks: ModuleType, tmp_path: Path) -> None:
    first, second = tmp_path / "fastvae-1-cp311-abi3-any.whl", tmp_path / "fastvae-2-cp311-abi3-any.whl"
    with pytest.raises(tasks.MissingError, match="has 0"):
        tasks.only_wheel(tmp_path)
    first.write_text("")
    assert tasks.only_wheel(tmp_path) == tasks.only_wheel(first) == first.resolve()
    second.write_text("")
    with pytest.raises(tasks.MissingError, match="has 2"):
        tasks.only_wheel(tmp_path)
    with pytest.raises(tasks.MissingError, match="is not there"):
        tasks.only_wheel(tmp_path / "missing.whl")


@POSIX
def test_a_wheel_is_tested_away_from_the_source(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tools: Path, tmp_path: Path
) -> None:
    built = tmp_path / "fastvae-1-cp311-abi3-any.whl"
    built.write_text("")
    seen: list[tuple[list[str], dict[str, str], Path, list[str]]] = []

    def run(command, variables, cwd=ROOT) -> None:
        seen.append(
            (
                [str(word) for word in command],
                dict(variables),
                cwd,
                sorted(path.name for path in cwd.iterdir()),
            )
        )

    monkeypatch.setattr(tasks, "run", run)
    environment = tmp_path / "env"
    assert tasks.main(["test-wheel", "--wheel", str(built), "--env", str(environment)]) == 0
    installs = [words for words, *_ in seen if "install" in words]
    assert any(words[-1] == f"{built.resolve()}[test]" for words in installs)
    # The version may be that of a wheel that was installed before.
    assert installs[-1][-3:] == ["--no-deps", "--force-reinstall", str(built.resolve())]
    words, variables, cwd, files = seen[-1]
    assert words == [str(environment / "bin" / "python"), "-m", "pytest"]
    assert cwd != ROOT
    assert ROOT not in cwd.parents
    assert "tests" in files
    assert not {"python", "rust"} & set(files)
    assert tasks.shutil.which("cargo", path=variables["PATH"]) is None
    assert "PYTHONPATH" not in variables
    # Just before, the place that the package is imported from is checked with the same variables.
    assert seen[-2][0][1].endswith("from_wheel.py")
    assert seen[-2][1:3] == (variables, cwd)


@POSIX
def test_a_machine_with_cuda_needs_a_wheel_and_no_rust(
    tasks: ModuleType, tools: Path, *, commands: list[list[str]], tmp_path: Path, capsys
) -> None:
    built = tmp_path / "fastvae-1-cp311-abi3-any.whl"
    built.write_text("")
    for name in ("cargo", "rustc", "cc"):
        (tools / name).unlink()
    environment = tmp_path / "env"
    asked = ["gpu", "--env", str(environment), "--wheel", str(built), "--", "tests", "noise"]
    assert tasks.main(asked) == 2
    assert "bash is missing" in capsys.readouterr().err
    _program(tools, "bash", "")
    assert tasks.main(asked) == 0
    assert commands[-1] == ["bash", "benches/gpu.sh", "tests", "noise"]
    assert _pips(commands)[-2][-1] == f"{built.resolve()}[gpu]"
    assert tasks.main(["gpu", "--env", str(environment)]) == 2
    assert "cargo is missing" in capsys.readouterr().err
