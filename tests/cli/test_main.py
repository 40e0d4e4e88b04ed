from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

SOURCES = [path for path in sys.path if path]


def run(
    code: str, *, folder: Path | None = None, before: str = "", timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter with `code` as its arguments, after `before`."""
    return subprocess.run(
        [sys.executable, "-c", script(code, before)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(folder),
    )


def script(arguments: str, before: str) -> str:
    return f"{textwrap.dedent(before)}\nfrom masksam_deploy.cli import main\nmain({arguments.split()!r})\n"


def environment(folder: Path | None) -> dict[str, str]:
    paths = [*([str(folder)] if folder else []), *SOURCES]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


# Replaces what a command does, so that the ways in which a command can end can be tried.
RAISING = """
    import click, sys
    from masksam_deploy.base import errors
    import masksam_deploy.cli.group as group
    def failing():
        BODY
    sys.modules["fake_command"] = type(sys)("fake_command")
    sys.modules["fake_command"].command = click.Command("infer", callback=failing)
    group._BUILT_IN["infer"] = ("fake_command:command", "Fake.")
"""


def raising(body: str) -> str:
    indented = textwrap.indent(textwrap.dedent(body).strip(), " " * 8).strip()
    return RAISING.replace("BODY", indented)


def test_help_imports_no_heavy_package_and_starts_quickly() -> None:
    heavy = ["numpy", "pydantic", "SimpleITK", "rich", "torch", "onnx", "onnxruntime", "PIL"]
    before = f"""
        import atexit, sys
        atexit.register(lambda: print("LOADED", [name for name in {heavy!r} if name in sys.modules]))
    """
    start = time.perf_counter()
    result = run("--help", before=before)
    assert time.perf_counter() - start < 2.0  # 0.1 s when the machine is idle
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "LOADED []", result.stdout


def test_help_lists_every_command_with_its_purpose() -> None:
    result = run("--help")
    for name, purpose in [
        ("bench", "Measure"),
        ("compare", "Compare"),
        ("evaluate", "Compare"),
        ("infer", "Segment"),
        ("inspect", "Show"),
        ("pack", "Put"),
        ("unpack", "Restore"),
    ]:
        assert any(line.split()[:2] == [name, purpose] for line in result.stdout.splitlines()), result.stdout


@pytest.mark.parametrize("command", ["bench", "compare", "evaluate", "infer", "inspect", "pack", "unpack"])
def test_the_listed_purpose_is_the_one_that_the_command_states(command: str) -> None:
    from masksam_deploy.cli.group import _BUILT_IN, _loaded

    where, purpose = _BUILT_IN[command]
    assert _loaded(where).get_short_help_str(limit=200) == purpose


def test_version_is_one_line() -> None:
    result = run("--version")
    assert result.returncode == 0 and result.stdout.startswith("masksam-deploy ")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["inspect", "inspect x --nonsense", "nonsense", "--nonsense"])
def test_a_wrong_call_exits_2_with_usage(arguments: str) -> None:
    result = run(arguments)
    assert result.returncode == 2
    assert "Usage:" in result.stderr and "Traceback" not in result.stderr


def test_a_refusal_is_one_line_with_the_exit_code_of_its_type() -> None:
    body = r"raise errors.ParityError('found 1,\nexpected 2; \x1b[2Jexport again')"
    result = run("infer", before=raising(body))
    assert result.returncode == 3
    assert one_line(result) == r"error: found 1, expected 2; \x1b[2Jexport again"


@pytest.mark.parametrize(
    "error",
    [
        "OSError(5, 'Input/output error', '/share/scan')",
        "OSError(24, 'Too many open files')",
        "BlockingIOError(11, 'Resource temporarily unavailable')",
        'RuntimeError("can\'t start new thread")',
    ],
)
def test_what_the_system_refuses_is_no_bug_of_ours(error: str) -> None:
    result = run("infer", before=raising(f"raise {error}"))
    assert result.returncode == 2
    assert "found that the system refuses" in one_line(result)


def test_a_wrong_call_is_quoted_without_its_control_characters() -> None:
    result = run("inspect a b\x1b[31m\x07\u202ec")
    assert result.returncode == 2
    assert r"b\x07\u202ec" in result.stderr
    assert all(char.isprintable() or char == "\n" for char in result.stderr)


def test_an_error_of_megabytes_keeps_its_beginning_and_its_end() -> None:
    result = run("infer", before=raising("raise errors.ScanError('found ' + '\\x1b[2J' * 1_000_000 + '; do this')"))
    assert result.returncode == 2
    line = one_line(result)
    assert len(line) < 2_100
    assert line.startswith(r"error: found \x1b[2J") and line.endswith("; do this") and " ... " in line


@pytest.mark.parametrize("error", ["click.ClickException", "click.UsageError", "click.BadParameter", "ValueError"])
def test_no_way_of_failing_prints_megabytes(error: str) -> None:
    result = run("infer", before=raising(f"raise {error}('x' * 10_000_000)"))
    assert result.returncode == (1 if error in ("ValueError", "click.ClickException") else 2)
    assert len(result.stderr) < 110_000


@pytest.mark.parametrize(
    "error",
    ["OSError(40, 'Too many levels', 'loop')", "OSError(36, 'Too long', 'a' * 5000)", "pathlib.Path('loop').resolve()"],
)
def test_a_path_that_cannot_be_used_is_one_line_from_wherever_it_comes(tmp_path: Path, error: str) -> None:
    body = f"import os, pathlib; os.chdir({str(tmp_path)!r}); os.symlink('loop', 'loop')\nraise {error}"
    result = run("infer", before=raising(body))
    if result.returncode == 1 and "resolve" in error:
        pytest.skip("this Python follows links that lead to themselves without an error")
    assert result.returncode == 2
    assert "found a path that cannot be used" in one_line(result)


def test_a_bug_shows_its_traceback_and_asks_for_a_report() -> None:
    result = run("infer", before=raising("raise KeyError('semseg')"))
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: unexpected KeyError: 'semseg'; this is a bug, please report it")


def test_a_full_disk_is_one_line_from_wherever_it_comes() -> None:
    result = run("infer", before=raising("raise OSError(28, 'No space left on device', '/data/seg.nii.gz')"))
    assert result.returncode == 2
    assert "disk full while writing '/data/seg.nii.gz'" in one_line(result)


def test_running_out_of_memory_is_one_line() -> None:
    result = run("infer", before=raising("raise MemoryError"))
    assert result.returncode == 2
    assert "memory" in one_line(result)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_command_after_it_cleaned_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run where this signal is ignored, and so does the command")
    body = """
        import time, pathlib
        from masksam_deploy.bundle.directory import staging_directory
        with staging_directory(pathlib.Path('x.masksam')) as staging:
            (staging / 'half').write_text('half')
            print('ready', flush=True)
            time.sleep(30)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script("infer", raising(body))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(None),
    )
    with process:
        assert process.stdout and process.stdout.readline() == "ready\n", process.communicate()
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (code, "")
    assert list(tmp_path.iterdir()) == []


def test_further_signals_do_not_interrupt_the_cleaning_up() -> None:
    body = """
        import os, signal
        def clean_up():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                raise OSError('of the cleaning up')
            except OSError:
                os.kill(os.getpid(), signal.SIGTERM)
            print('cleaned', flush=True)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            clean_up()
    """
    result = run("infer", before=raising(body))
    assert (result.returncode, result.stdout, result.stderr) == (143, "cleaned\n", "")


def test_a_further_signal_while_the_process_ends_does_not_change_its_exit_code() -> None:
    body = """
        import atexit, os, signal
        atexit.register(os.kill, os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    """
    result = run("infer", before=raising(body))
    assert (result.returncode, result.stderr) == (143, "")


def test_a_signal_lost_in_a_finalizer_does_not_make_the_next_one_deaf() -> None:
    body = """
        import os, signal
        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        Finalized()  # Python drops what finalizers raise
        print('goes on', flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print('deaf', flush=True)
    """
    result = run("infer", before=raising(body))
    assert (result.returncode, result.stdout) == (143, "goes on\n")


def test_a_reader_that_leaves_early_is_no_error_message() -> None:
    before = raising("[click.echo('x' * 1000) for _ in range(1000)]")
    process = subprocess.Popen(
        [sys.executable, "-c", script("infer", before)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(None),
    )
    with process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def _distribution(folder: Path, entry: str) -> None:
    info = folder / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[masksam_deploy.commands]\n{entry}\n")


def test_other_packages_add_commands_through_the_entry_point_group(tmp_path: Path) -> None:
    _distribution(tmp_path, "polish = extra_command:polish\ninfer = extra_command:polish")
    body = 'def polish():\n    """Polish a network."""\n    click.echo("polished")\n'
    (tmp_path / "extra_command.py").write_text(f"import click\n@click.command()\n{body}")
    listing = run("--help", folder=tmp_path).stdout
    assert any(line.split() == ["polish", "Polish", "a", "network."] for line in listing.splitlines()), listing
    assert listing.count("Polish a network.") == 1, "a built-in command must not be replaced"
    assert run("polish", folder=tmp_path).stdout == "polished\n"


def test_a_command_that_cannot_be_imported_breaks_only_itself(tmp_path: Path) -> None:
    _distribution(tmp_path, "polish = extra_missing:polish")
    listing = run("--help", folder=tmp_path)
    assert listing.returncode == 0 and "cannot be loaded" in listing.stdout
    result = run("polish", folder=tmp_path)
    assert result.returncode == 2
    assert "command 'polish': found that 'extra_missing:polish' cannot be imported" in one_line(result)
