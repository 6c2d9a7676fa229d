"""Errors of a command are one line on standard error and an exit code, never a traceback.

The commands run in separate processes, started as by a shell.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from throughtime._text import visible
from throughtime.cli.character_model import CharacterModel

COMMAND = [sys.executable, "-c", "from throughtime.cli import app; app()"]
TINY = ["--hidden", "8", "--steps", "2", "--batch", "2", "--window", "8", "--sample-length", "200"]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "info": ["info"],
    "train": ["train", "text.txt", *TINY, "--save", "new", "--monitor"],
    "sample": ["sample", "model"],
    "flow": ["flow", "--model", "model", "--text", "text.txt", "--steps", "9"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    CharacterModel.new("".join(sorted(set(TEXT))), "gru", 1, 8, 0).save(tmp_path / "model")
    return tmp_path


def call(arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300, **options}
    return subprocess.run([*COMMAND, *arguments], text=True, errors="surrogateescape", check=False, **options)


def assert_one_line(done, *words):
    assert done.stderr.startswith("throughtime: error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone(folder, name):
    """The exit code is that of a program ended by SIGPIPE, as a shell reports it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = call(COMMANDS[name], stdout=writer)
    os.close(writer)
    assert_one_line(done, "the standard output: Broken pipe")
    assert done.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_full(folder, name, unbuffered):
    with open("/dev/full", "w") as full:
        done = call(COMMANDS[name], stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert_one_line(done, "the standard output: No space left on device")
    assert done.returncode == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_closed(folder, name):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *COMMANDS[name]]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert_one_line(done, "the standard output is closed")
    assert done.returncode == 1


@pytest.mark.parametrize("name", ["info", "train", "sample", "flow"])
@pytest.mark.parametrize(("variable", "value"), [("THROUGHTIME_ISA", "z80"), ("THROUGHTIME_NUM_THREADS", "many")])
def test_wrong_variables(folder, name, variable, value):
    done = call(COMMANDS[name], env={**os.environ, variable: value})
    assert_one_line(done, f"{variable} is '{value}', expected")
    assert (done.returncode, done.stdout) == (2, "")
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", ["train", "flow"])
def test_a_backend_of_plots_that_there_is_not(folder, name):
    done = call(COMMANDS[name], env={**os.environ, "MPLBACKEND": "crayon"})
    assert_one_line(done, "MPLBACKEND=crayon: ")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_format_of_plots_that_needs_a_program_that_is_absent(folder):
    """.pgf needs TeX, which is not found here."""
    done = call([*COMMANDS["train"], "--plot", "plot.pgf"], env={**os.environ, "PATH": "/nowhere"})
    assert_one_line(done, "--plot plot.pgf: matplotlib cannot draw it: ")
    assert (done.returncode, done.stdout) == (2, "")


def test_texts_without_end(folder):
    for device in filter(os.path.exists, ("/dev/zero", "/dev/full")):
        for arguments in (["train", device], ["flow", "--text", device]):
            done = call(arguments)
            assert_one_line(done, f"{device}: is a device")
            assert (done.returncode, done.stdout) == (2, "")


def test_a_text_that_is_too_large_is_not_read(folder):
    with open("large.txt", "wb") as file:
        file.truncate(10**10)  # a sparse file
    done = call(["train", "large.txt"])
    assert_one_line(done, "large.txt: more than 1,073,741,824 bytes")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_text_from_a_pipe(folder):
    done = call(["train", "/dev/stdin", *TINY], input=TEXT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"/dev/stdin: {len(TEXT):,} characters")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
@pytest.mark.parametrize("name", ["train", "flow"])
def test_a_plot_where_no_file_can_be_made(folder, name):
    """With root's permissions, the check would say that the file can be made."""
    done = call([*COMMANDS[name], "--plot", "/proc/plot.png"])
    assert_one_line(done, "--plot /proc/plot.png: cannot write into /proc")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments", [["train", "--steps", "0"], ["train", "--cell", "\x1b[31mred"], ["flow", "a"], ["teach"], ["sample"]]
)
def test_wrong_arguments(folder, arguments):
    done = call(arguments)
    assert_one_line(done)
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr


def test_too_little_memory(folder):
    done = call(["train", "text.txt", "--hidden", "20000000"])
    assert_one_line(done, "not enough memory")
    assert done.returncode == 1


def test_nothing_is_lost_when_the_reader_goes_in_the_middle(folder):
    """The command prints a line per step; the reader reads the first line and closes the pipe."""
    code = "from throughtime.cli import app, train; train._REPORTS = 0; app()"
    arguments = ["train", "text.txt", *TINY, "--steps", "100000", "--save", "new"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 141
    assert stderr == "throughtime: error: the standard output: Broken pipe\n"
    assert CharacterModel.load(folder / "new").vocabulary == "".join(sorted(set(TEXT)))


def test_what_a_terminal_obeys_is_shown_as_escapes(folder):
    """In training text and in names, which are not UTF-8; half of the sample are control characters."""
    controls = "\x1b\x07\x9b\u202e"
    (folder / "raw.txt").write_text(("a" + controls + "b\n\t") * 40, encoding="utf-8")
    name = os.fsdecode(b"\xff \x1b]0;title\x07.txt")
    os.rename("raw.txt", name)
    model = os.fsdecode(b"\xfe\n$m$")
    done = call(["train", name, *TINY, "--temperature", "9", "--save", model, "--plot", f"{model}.png"])
    assert done.returncode == 0, done.stderr
    sampled = call(["sample", model, "--prompt", "a\x1b", "--temperature", "9"])
    assert sampled.returncode == 0, sampled.stderr
    flow = call(["flow", "--model", model, "--text", name, "--steps", "9"])
    assert flow.returncode == 0, flow.stderr
    absent = call(["flow", "--model", f"{model}{name}"])
    assert_one_line(absent, r"\udcfe\n$m$\udcff \x1b]0;title\x07.txt")
    for output in (done.stdout, sampled.stdout, flow.stdout, absent.stderr):
        assert not set(output) & set(controls)
        assert r"\x1b" in output
    assert r"\udcff \x1b]0;title\x07.txt: " in done.stdout
    assert r"\u202e" in done.stdout
    assert sampled.stdout.startswith(r"a\x1b")
    assert done.stderr == sampled.stderr == flow.stderr == ""


def test_visible():
    assert visible("a\x1b[0m\r\u2028é 한\udc80\u202e") == "a\\x1b[0m\\r\\u2028é 한\\udc80\\u202e"
    assert visible("a\tb\n\x00", keep="\n\t") == "a\tb\n\\x00"


def test_a_plot_that_fails_costs_no_model(folder):
    """The plot's directory vanishes during training."""
    code = (
        "import shutil, throughtime as tt\n"
        "from throughtime.cli import app\n"
        "flow = tt.gradient_flow\n"
        "tt.gradient_flow = lambda *a: [flow(*a), shutil.rmtree('plots')][0]\n"
        "app()\n"
    )
    (folder / "plots").mkdir()
    arguments = ["train", "text.txt", *TINY, "--save", "new", "--plot", "plots/plot.png"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert_one_line(done, "plots/plot.png: No such file or directory")
    assert done.returncode == 1
    assert "model: new" in done.stdout
    loaded = CharacterModel.load(folder / "new")
    assert all(np.isfinite(array).all() for array in loaded.parameters.values())
