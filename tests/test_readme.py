"""What the README says holds: its commands parse, its names exist, its tables are complete."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SCRIPTS = [path.stem for path in sorted(ROOT.glob("a*.py"))]
RESULTS = (ROOT / "results" / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README + RESULTS, flags=re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
LINES = [line.removeprefix("exec ") for line in LINES]  # as in a batch script
COMMANDS = [line for line in LINES if re.match(r"python a\w+\.py", line)]


def test_the_first_screen_runs_the_main_job_and_the_tests():
    first_screen = README.splitlines()[:50]
    assert "uv run acer_atari.py --env-id BreakoutNoFrameskip-v4" in first_screen
    assert "python acer_atari.py --env-id BreakoutNoFrameskip-v4" in first_screen
    assert "python -m pytest" in first_screen


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_the_pinned_packages_of_requirements_txt(name):
    """Inline script metadata, as `uv run` reads it (PEP 723)."""
    source = (ROOT / f"{name}.py").read_text()
    block = re.search(r"^# /// script\n(.*?)^# ///$", source, re.DOTALL | re.MULTILINE)[1]
    metadata = tomllib.loads("".join(line[2:] for line in block.splitlines(keepends=True)))
    assert metadata["dependencies"] == (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in package for package in metadata["dependencies"])
    assert metadata["requires-python"] == ">=3.11,<3.15"


def test_both_readmes_are_short():
    assert len(README.splitlines()) <= 300
    assert len(README.encode()) < 25_000
    assert len((ROOT / "results" / "README.md").read_text().splitlines()) <= 150


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
def test_the_defaults_in_the_table_are_the_scripts(name):
    script = importlib.import_module(name)
    args, rows = vars(script.parse_args([])), 0
    for row in re.findall(r"^\| `--.*$", README, flags=re.MULTILINE):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        flag, cell = cells[0].strip("`")[2:].replace("-", "_"), cells[2 + COLUMNS.index(name)]
        default, rows = args.get(flag), rows + 1
        if default is None:
            assert cell == "–", row
        elif isinstance(default, bool):
            assert cell == ("on" if default else "off"), row
        elif is_number(cell.replace(",", "")):
            assert float(cell.replace(",", "")) == default, row
        else:
            assert cell == default, row
    assert rows > 10


def test_every_default_that_differs_between_scripts_stands_in_the_table():
    defaults = {}
    for name in SCRIPTS:
        for flag, value in vars(importlib.import_module(name).parse_args([])).items():
            defaults.setdefault(flag, set()).add(value)
    differing = {flag for flag, values in defaults.items() if len(values) > 1}
    shown = set(re.findall(r"^\| `--([\w-]+)`", README, flags=re.MULTILINE))
    told_elsewhere = {"exp_name", "env_id", "total_timesteps"}
    assert {flag.replace("_", "-") for flag in differing - told_elsewhere} <= shown


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
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", RESULTS)
    assert all((ROOT / "results" / target).exists() for target in targets), targets


@pytest.mark.parametrize("command", [c for c in LINES if c.startswith("python results/reproduce")])
def test_reproduce_knows_the_runs_that_are_asked_for(command):
    argv = [word for word in shlex.split(command)[2:] if word != "--dry-run"]
    if "--address" in argv:
        del argv[argv.index("--address") :]
    listed = subprocess.run(
        [sys.executable, "results/reproduce.py", *argv, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    assert "--env-id" in listed.stdout


def test_every_heading_that_it_links_to_is_there():
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
