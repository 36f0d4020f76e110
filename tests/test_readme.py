"""What the README says holds: its commands parse, its names exist, its tables are complete."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SCRIPTS = [path.stem for path in sorted(ROOT.glob("a*.py"))]
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"python a\w+\.py", line)]


def test_the_first_screen_runs_the_main_job_and_the_tests():
    first_screen = README.splitlines()[:50]
    assert "python acer_atari.py --env-id BreakoutNoFrameskip-v4" in first_screen
    assert "python -m pytest" in first_screen


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    _, script, *argv = shlex.split(command.replace("$SLURM_ARRAY_TASK_ID", "3"))
    module = importlib.import_module(Path(script).stem)
    if {"--resume", "--evaluate"} & set(argv):  # these read a run: the flags alone are checked
        module.build_parser().parse_args(argv)
    else:
        module.parse_args(argv)


def test_no_placeholder_is_left():
    assert not re.findall(r"\b[A-Z]{8,}\b", README)


def test_there_are_commands_for_each_script():
    assert {Path(shlex.split(command)[1]).stem for command in COMMANDS} == set(SCRIPTS)


COLUMNS = ["acer_atari", "a3c_recurrent_atari", "acer_continuous", "a3c_continuous"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_and_its_default_stand_in_the_tables(name):
    script = importlib.import_module(name)
    for action in script.build_parser()._actions:
        flag = action.option_strings[0]
        if flag == "-h":
            continue
        rows = [line for line in README.splitlines() if line.startswith(f"| `{flag}`")]
        assert len(rows) == 1, f"{flag} has {len(rows)} rows"
        cell = rows[0].split("|")[3 + COLUMNS.index(name)].strip()
        default = getattr(script.parse_args([]), action.dest)
        if isinstance(default, bool):
            assert cell == ("on" if default else "off"), rows[0]
        elif isinstance(default, int | float) and flag != "--num-workers":
            assert is_number(cell.replace(",", "")), rows[0]
            assert float(cell.replace(",", "")) == default, rows[0]
        else:
            assert cell != "–", rows[0]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_every_function_of_the_equation_map_exists():
    """The map's rows are `| equation | `script.function` |`."""
    names = re.findall(r"\| `(acer_\w+|a3c_\w+)\.(?!py`)(\w+)` \|", README)
    assert len(names) > 5
    for script, function in names:
        assert hasattr(importlib.import_module(script), function)


def test_every_file_that_it_links_to_is_there():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert all((ROOT / target).exists() for target in targets), targets


def test_every_heading_that_it_links_to_is_there():
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
