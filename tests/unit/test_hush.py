"""What TensorFlow says about itself while it is imported is kept from people, and errors are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from model.hush import hush_tensorflow
hush_tensorflow()
hush_tensorflow()
import tensorflow
print(tensorflow.__name__)
"""


def run(*program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    unset = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(program, capture_output=True, text=True, check=False, env={**unset, **settings})


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Give a folder that stands before the real TensorFlow, in which a test writes its own."""
    (tmp_path / "tensorflow").mkdir()
    return tmp_path


def stand_before(folder: Path, body: str) -> dict[str, str]:
    (folder / "tensorflow" / "__init__.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_command_says_what_it_was_asked_and_nothing_of_tensorflow() -> None:
    # Given a command that imports TensorFlow, which speaks where its own setting asks for it
    command = [str(Path(sys.executable).with_name("lesion-model")), "recipes"]

    quiet, loud = run(*command), run(*command, TF_CPP_MIN_LOG_LEVEL="0")

    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == loud.stdout
    assert "absl::InitializeLog" in loud.stderr


def test_errors_come_through_even_when_the_import_aborts(made_up: Path) -> None:
    chatter, error = "I0000 00:00:1.2 3 port.cc:153] chatter\n", "F0000 00:00:1.2 3 a.cc:1] no AVX\n"
    settings = stand_before(made_up, f"import os\nos.write(2, {(chatter + error).encode()!r})\nos.abort()")

    done = run(sys.executable, "-c", PROGRAM, **settings)

    assert done.returncode < 0
    assert done.stderr == error


def test_an_import_that_fails_is_told_as_ever(made_up: Path) -> None:
    done = run(sys.executable, "-c", PROGRAM, **stand_before(made_up, 'raise ImportError("a library is missing")'))

    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: a library is missing\n")


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("grep", "I0000 chatter\n"),
        ("a grep that starts", "I0000 chatter\n"),
        ("standard error", ""),
    ],
)
def test_where_nothing_can_be_filtered_it_is_imported_all_the_same(made_up: Path, lacking: str, said: str) -> None:
    settings = stand_before(made_up, f"import os\nif {said!r}: os.write(2, {said!r}.encode())")
    program = f"import os; os.close(2)\n{PROGRAM}"
    if lacking != "standard error":
        settings, program = settings | {"PATH": str(made_up)}, PROGRAM
    if lacking == "a grep that starts":
        (made_up / "grep").write_bytes(b"\x7fELF and nothing more")
        (made_up / "grep").chmod(0o755)

    done = run(sys.executable, "-c", program, **settings)

    assert (done.returncode, done.stdout, done.stderr) == (0, "tensorflow\n", said)
