"""Exit codes, one-line errors, and that verbs load no more than they need."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tpi.cli import main as main_module
from tpi.cli import status as status_verb
from tpi.cli.main import VERBS, main
from tpi.cli.signals import Terminated
from tpi.errors import Cancelled, LinkError, UsageError
from tpi.version import VERSION

Raise = Callable[[BaseException], None]


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Raise:
    """Makes ``tpi status`` end with an error."""

    def prepare(error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(status_verb, "choose_master", fail)

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LinkError("the link broke"), 1, "tpi: the link broke\n"),
        (UsageError("not so"), 2, "tpi: not so\n"),
        (LinkError("one\ntwo \x1b[31m three"), 1, "tpi: one two  [31m three\n"),
        (Cancelled("stopped"), 130, "tpi: stopped\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(24, "Too many open files", "/a"), 1, "tpi: Too many open files: /a\n"),
        (Terminated(signal.SIGTERM), 143, ""),
    ],
)
def test_ends(fail_with: Raise, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str) -> None:
    fail_with(error)
    assert main(["status"]) == code
    assert capsys.readouterr() == ("", said)


def test_a_defect_is_one_line_unless_it_is_looked_for(
    fail_with: Raise, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TPI_DEBUG", raising=False)
    fail_with(KeyError("x"))
    assert main(["status"]) == 70
    line = capsys.readouterr().err
    assert line.startswith("tpi: KeyError: 'x'") and "TPI_DEBUG=1" in line and line.count("\n") == 1
    monkeypatch.setenv("TPI_DEBUG", "1")
    assert main(["status"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["foo"], "No such command 'foo'; see `tpi --help`"),
        (["status", "--foo"], "No such option: --foo; see `tpi status --help`"),
        (["inspect"], "see `tpi inspect --help`"),
        (["serve", "demo", "--no-api", "--slot-folder", "x"], "--slot-folder x is of no use with --no-api"),
        (["inspect", "a", "b"], "see `tpi inspect --help`"),
        (["status", "--pid", "x"], "see `tpi status --help`"),
        (["join", "--threads", "0", "key"], "see `tpi join --help`"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("tpi: ") and said in error and error.count("\n") == 1


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in listed
        assert main([verb, "--help"]) == 0
        assert f"tpi {verb}" in capsys.readouterr().out
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tpi {VERSION}\n"


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "import sys; from tpi.cli import main as m; sys.exit(m.main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [(">&-", 0, ""), ("<&- >&- 2>&-", 0, ""), (">/dev/full", 1, "tpi: No space left on device\n")],
)
def test_streams_that_are_closed_or_full(redirection: str, code: int, said: str) -> None:
    program = "import sys; from tpi.cli.main import main; sys.exit(main(['--help']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_sigterm_ends_through_the_context_managers() -> None:
    program = """
import os, signal, sys
from tpi.cli import main, status
def choose(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("closed")
status.choose_master = choose
sys.exit(main.main(["status"]))
"""
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (143, "closed\n", "")


def test_a_worker_loads_nothing_that_only_masters_need() -> None:
    program = """
import sys
from tpi.cli import main
code = main.main(["join", "tpi1-wrong"])
names = {name.split(".")[0] for name in sys.modules}
print(code, *sorted(names & {"rich", "jinja2", "llama_cpp", "psutil", "cryptography", "fastapi", "gguf"}))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = run_python(program)
    loaded, peak_kb = done.stdout.splitlines()
    assert loaded == "1"
    assert "tpi: the join key" in done.stderr
    assert int(peak_kb) * 1024 < 60e6


def test_one_verb_does_not_load_the_others() -> None:
    program = (
        "import sys; from tpi.cli import main; main.main(['status', '--help']); print(*sys.modules, file=sys.stderr)"
    )
    loaded = set(run_python(program).stderr.split())
    assert "tpi.cli.status" in loaded
    assert not loaded & {f"tpi.cli.{verb.module}" for name, verb in VERBS.items() if name != "status"}
    assert "numpy" not in loaded


def test_every_verb_says_what_it_does() -> None:
    assert all(verb.summary.endswith(".") for verb in main_module.VERBS.values())
