"""Same name, same text: the scripts repeat code on purpose, and word for word."""

import ast
import difflib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["acer_atari.py", "a3c_recurrent_atari.py", "acer_continuous.py", "a3c_continuous.py"]

# What truly differs between scripts, and nothing else: a name that no longer differs must go.
DIFFERENT = {
    # settings, network, segment, loss, worker
    *("SETTINGS", "LEARNING_RATES", "ActorCritic", "Segment", "acer_loss", "a3c_loss"),
    *("Shared", "Actor", "worker"),
    # replay and environment of discrete and of continuous actions
    *("pack", "unpack", "make_env"),
}
MOST = 12  # names that may differ

ALIKE = {  # of these, what two scripts have in common all the same
    ("acer_atari.py", "a3c_recurrent_atari.py"): {"make_env"},
    ("acer_continuous.py", "a3c_continuous.py"): {"make_env"},
}


def definitions(source: str) -> dict[str, str]:
    """Return the text of every top-level definition, with the comments and decorators above it."""
    lines, texts, end = source.splitlines(), {}, 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        else:
            names = []
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        while (
            first - 1 > end and lines[first - 2].startswith("#") and "====" not in lines[first - 2]
        ):
            first -= 1
        end = node.end_lineno
        for name in names:  # a constant may be made in several steps
            texts[name] = "\n".join([*texts.get(name, "").splitlines(), *lines[first - 1 : end]])
    return texts


def complaints(sources: dict[str, str], different: set[str]) -> list[str]:
    """Compare the definitions that several scripts have; say what is wrong with them."""
    found: dict[str, dict[str, str]] = {}
    for script, source in sources.items():
        for name, text in definitions(source).items():
            found.setdefault(name, {})[script] = text
    wrong = []
    for name, texts in found.items():
        (first, text), *others = texts.items()
        differing = [(script, other) for script, other in others if other != text]
        if name in different:
            if not differing:
                wrong.append(f"{name} is listed as different and is not: take it off the list")
            continue
        for script, other in differing:
            diff = difflib.unified_diff(
                text.splitlines(), other.splitlines(), f"{first}: {name}", script, lineterm=""
            )
            wrong.append("\n".join(diff))
    wrong += [f"{name} is listed as different and is nowhere" for name in different - set(found)]
    return wrong


def test_definitions_of_the_same_name_are_the_same_text():
    wrong = complaints({name: (ROOT / name).read_text() for name in SCRIPTS}, DIFFERENT)
    assert not wrong, "\n\n".join(wrong)
    assert len(DIFFERENT) <= MOST


@pytest.mark.parametrize("pair", ALIKE, ids=" ".join)
def test_what_two_scripts_have_in_common_is_the_same_text(pair):
    first, second = (definitions((ROOT / script).read_text()) for script in pair)
    assert ALIKE[pair] <= DIFFERENT
    for name in ALIKE[pair]:
        assert first[name] == second[name]


SAMPLE = '''
LIMIT = 1  # a constant
NAMES = {"a"}
NAMES |= {"b"}

# Why this is so.
@decorator
def f(x):
    """Say it."""
    return x  # here


class C:
    pass
'''


def test_the_checker_accepts_identical_definitions_and_those_of_one_script_alone():
    assert complaints({"a": SAMPLE, "b": SAMPLE + "\n\ndef g(): pass\n"}, set()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x  # here", "return x"),
        ("return x  # here", "return -x  # here"),
        ("Say it.", "Say something."),
        ("# Why this is so.", "# Why this is not so."),
        ("@decorator\n", ""),
        ("LIMIT = 1", "LIMIT = 2"),
        ('NAMES = {"a"}', 'NAMES = {"c"}'),
        ('NAMES |= {"b"}', 'NAMES |= {"c"}'),
        ("    pass", "    x = 1"),
    ],
)
def test_the_checker_sees_every_difference_and_shows_it(old, new):
    changed = SAMPLE.replace(old, new)
    assert changed != SAMPLE
    (wrong,) = complaints({"a": SAMPLE, "b": changed}, set())
    shown = new.strip() or "-@decorator"
    assert shown in wrong


def test_the_checker_leaves_listed_names_alone_while_they_differ():
    changed = SAMPLE.replace("return x", "return -x")
    assert complaints({"a": SAMPLE, "b": changed}, {"f"}) == []
    assert "take it off" in complaints({"a": SAMPLE, "b": SAMPLE}, {"f"})[0]
    assert "nowhere" in complaints({"a": SAMPLE, "b": SAMPLE}, {"gone"})[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_nothing_from_this_repository(script):
    local = {path.stem for path in ROOT.glob("*.py")} | {"tests", "results"}
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.Import):
            assert not local & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module.split(".")[0] not in local


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_does_nothing_when_imported(script):
    """Workers and tests import it. At the top stand definitions, constants, the guard."""
    definition = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
        elif isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), "only the docstring"
        else:
            assert isinstance(node, definition | ast.Assign | ast.AugAssign)
