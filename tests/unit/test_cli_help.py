"""README and help tell the truth about both command lines."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

import model.examples
import producer.examples
from model.cli import main
from producer import (
    commands,
    doctor,
    drift,
    erasing,
    inspection,
    labelling,
    reporting,
    returning,
    serving,
    training,
    versions,
)
from producer.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, click.Group] = {"lesion-screen": cli, "lesion-model": main}
EXAMPLES = {"lesion-screen": producer.examples.EXAMPLES, "lesion-model": model.examples.EXAMPLES}
#: Where the work of `lesion-screen` is done.
WORKPLACES = (
    commands,
    doctor,
    drift,
    erasing,
    inspection,
    labelling,
    reporting,
    returning,
    serving,
    training,
    versions,
)


def _walk(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for word, below in command.commands.items():
            yield from _walk(below, f"{name} {word}".strip())


COMMANDS = [(program, name) for program, group in PROGRAMS.items() for name, _ in _walk(group)]
ALL_EXAMPLES = [
    f"{program} {example}" for program, examples in EXAMPLES.items() for lines in examples.values() for example in lines
]
#: The lines of README's shell blocks that call one of the two.
README_LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.split(" ")[0] in PROGRAMS
]
README_ROWS = [line for line in README.splitlines() if re.match(r"\| `lesion-(screen|model) ", line)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the files of the examples are, and do no work."""
    monkeypatch.chdir(tmp_path)
    for folder in ("ham10000", "run", "artifact", "tour/archive"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("lesion.jpg", "deletion.json"):
        (tmp_path / file).touch()
    for module in WORKPLACES:
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                monkeypatch.setattr(module, name, lambda *_arguments, **_options: 0)
    for command in main.commands.values():
        monkeypatch.setattr(command, "callback", lambda **_options: None)


def _call(line: str) -> Result:
    # What a shell would take for itself: comments, and where standard input comes from.
    program, *arguments = shlex.split(line.split(" < ", maxsplit=1)[0], comments=True)
    return CliRunner().invoke(PROGRAMS[program], arguments)


@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=lambda word: word or "itself")
def test_the_help_of_every_command_ends_with_its_examples(program: str, name: str) -> None:
    # Given a command with an example or two of its own
    examples = EXAMPLES[program][name]
    assert 1 <= len(examples) <= 2
    assert all(example.startswith(name) for example in examples)

    # If it is asked for help
    result = _call(f"{program} {name} --help")

    # Then they are its last lines, each whole
    assert result.exit_code == 0, result.output
    last = [line.strip() for line in result.output.rstrip().splitlines()[-1 - len(examples) :]]
    assert last == ["Examples:" if len(examples) > 1 else "Example:", *(f"{program} {one}" for one in examples)]


def test_there_is_no_example_of_a_command_that_is_gone() -> None:
    assert {(program, name) for program, examples in EXAMPLES.items() for name in examples} == set(COMMANDS)


@pytest.mark.parametrize("line", [*ALL_EXAMPLES, *README_LINES])
def test_every_example_is_taken(line: str) -> None:
    result = _call(line)

    assert (result.exit_code, result.output, result.exception) == (0, "", None)


@pytest.mark.parametrize(
    "line", ["lesion-screen export 3", "lesion-screen drift 3 --accept", "lesion-model predict no"]
)
def test_an_example_that_is_wrong_would_be_found(line: str) -> None:
    assert _call(line).exit_code == 2


@pytest.mark.parametrize("row", README_ROWS)
def test_every_command_of_the_readme_exists_with_the_options_named_there(row: str) -> None:
    # Given a row of a table, whose first cell names commands of one program
    first = re.split(r"(?<!\\)\|", row)[1]
    spans = re.findall(r"`([^`]+)`", first)
    program = spans[0].split()[0]
    known = dict(_walk(PROGRAMS[program]))

    # If each is looked up
    named: dict[str, click.Command] = {}
    for span in spans:
        word, *rest = span.removeprefix(program).split()
        below = rest[0].split(r"\|") if isinstance(known.get(word), click.Group) else []
        named |= {name: known[name] for name in ([f"{word} {one}" for one in below] or [word])}

    # Then it is there, and so is each option of the row
    options = {option for command in named.values() for param in command.params for option in param.opts}
    assert named
    assert set(re.findall(r"--[a-z][a-z-]*", row)) <= options


@pytest.mark.parametrize(("program", "name"), [one for one in COMMANDS if " " not in one[1] and one[1]])
def test_the_readme_names_every_command(program: str, name: str) -> None:
    rows = [row for row in README_ROWS if row.startswith(f"| `{program} ")]

    assert f"`{program} {name}" in README or f"{program} {name} " in README or any(f"`{name}" in row for row in rows)


def test_there_is_something_to_hold_against_each_other() -> None:
    assert len(COMMANDS) > 40
    assert len(README_ROWS) > 25
    assert len(README_LINES) > 1
