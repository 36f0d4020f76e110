"""Files that somebody spoiled, by chance or by intent: one line, and nothing is overwritten."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from harness import SCRIPTS, is_continuous, make_shared, module, settings, tiny, toy

CONTINUOUS = [name for name in SCRIPTS if is_continuous(name)]  # their networks are small


def contents_of(name: str) -> dict:
    args = settings(name)
    counts = {"steps": 60, "seconds": 1.5}
    return {"script": f"{name}.py", "args": vars(args), **counts, **make_shared(name, args).state()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A good checkpoint of each script, after 60 steps."""
    folder = tmp_path_factory.mktemp("saved")
    for name in SCRIPTS:
        torch.save(contents_of(name), folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in SCRIPTS}


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def first(part: dict) -> str:
    """Return the name of the first part that is a matrix, if there is one, or of the first."""
    matrices = [name for name, x in part.items() if getattr(x, "ndim", 0) > 1]
    return (matrices or list(part))[0]


def change_first(change):
    """Change the model's first weights."""

    def apply(contents: dict) -> None:
        model = contents["model"]
        model[first(model)] = change(model[first(model)])

    return apply


def change_moments(change):
    """Change the optimizer's first moments."""

    def apply(contents: dict) -> None:
        moments = contents["optimizer"]["state"][0]
        moments["exp_avg"] = change(moments["exp_avg"])

    return apply


def set_part(name: str, value):
    """Put something else in place of a part."""
    return lambda contents: contents.update({name: value})


def filled(number: float):
    return lambda x: torch.full_like(x, number)


NO_WEIGHTS = {  # of no use to play, nor to go on
    "not a number": change_first(filled(float("nan"))),
    "infinite": change_first(filled(float("inf"))),
    "another shape": change_first(lambda x: x[1:].clone()),
    "transposed": change_first(lambda x: x.T.contiguous()),
    "half precision": change_first(lambda x: x.half()),
    "double precision": change_first(lambda x: x.double()),
    "whole numbers": change_first(lambda x: x.int()),
    "complex": change_first(lambda x: x.to(torch.complex64)),
    "sparse": change_first(lambda x: x.to_sparse()),
    "without data": change_first(lambda x: x.to("meta")),
    "a list": change_first(lambda x: x.tolist()),
    "huge": change_first(lambda x: torch.zeros(1).expand(10**12)),
    "missing weights": lambda contents: contents["model"].pop(first(contents["model"])),
    "no model": lambda contents: contents.pop("model"),
    "an empty model": set_part("model", {}),
    "a model that is a list": set_part("model", [1, 2]),
    "negative steps": set_part("steps", -1),
    "steps that are none": set_part("steps", "many"),
    "a tensor of steps": set_part("steps", torch.tensor([3, 4])),
    "truth as steps": set_part("steps", True),
    "seconds that are not a number": set_part("seconds", float("nan")),
    "negative seconds": set_part("seconds", -1.0),
    "no settings": set_part("args", None),
    "settings that are a list": set_part("args", [["gamma", 0.9]]),
    "no script": lambda contents: contents.pop("script"),
    "a tensor as the script": set_part("script", torch.zeros(3, 3)),
    "a name of several lines": set_part("script", "a\nb\r\033[2Jc.py"),
}
NO_RUN = {  # of no use to go on
    "moments that are not numbers": change_moments(filled(float("nan"))),
    "moments of another shape": change_moments(lambda x: x[1:].clone()),
    "moments of half precision": change_moments(lambda x: x.half()),
    "no moments": lambda contents: contents["optimizer"]["state"].clear(),
    "no optimizer": lambda contents: contents.pop("optimizer"),
    "an optimizer that is a list": set_part("optimizer", []),
}
CASES = [("--evaluate", case) for case in NO_WEIGHTS]
CASES += [("--resume", case) for case in NO_WEIGHTS | NO_RUN]


@pytest.mark.parametrize(("flag", "case"), CASES)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_checkpoint_with_a_part_that_will_not_do_ends_with_one_line(
    name, flag, case, saved, tmp_path
):
    contents, path = read(saved[name]), tmp_path / "checkpoint.pt"
    (NO_WEIGHTS | NO_RUN)[case](contents)
    torch.save(contents, path)
    before = path.read_bytes()
    argv = [flag, str(path), "--env-id", toy(name)]
    argv += ["--total-timesteps", "90", "--num-workers", "1", "--eval-episodes", "1"]
    with pytest.raises(SystemExit) as stop:
        module(name).main(argv)
    assert isinstance(stop.value.code, str)
    assert re.fullmatch(rf"{name}\.py: error: [^\n\r\033]+", stop.value.code)
    assert "checkpoint" in stop.value.code
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_a_checkpoint_holds_beyond_its_parts_does_no_harm(name, saved, tmp_path):
    """A later version may write more."""
    contents, path = read(saved[name]), tmp_path / "checkpoint.pt"
    contents |= {"comment": "the best one", "more": {"weights": torch.zeros(3)}}
    contents["model"]["more"] = torch.zeros(3)
    contents["args"] |= {"a_setting_of_later": 5}
    torch.save(contents, path)
    argv = ["--resume", str(path), "--env-id", toy(name), "--total-timesteps", "90"]
    module(name).main(argv)
    assert read(path)["steps"] >= 90
    assert "a_setting_of_later" not in read(path)["args"]


@pytest.mark.parametrize("part", ["whole", "model", "optimizer"])
@pytest.mark.parametrize(
    ("name", "other"),
    [("a3c_continuous", "acer_continuous"), ("a3c_recurrent_atari", "acer_atari")],
)
def test_another_scripts_parts_are_refused(name, other, part, saved, tmp_path):
    contents = read(saved[other])
    if part != "whole":
        contents = read(saved[name]) | {part: contents[part]}
    torch.save(contents, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--resume", str(tmp_path), "--env-id", toy(name)])
    assert re.fullmatch(rf"{name}\.py: error: .+", stop.value.code)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_no_changed_byte_of_a_checkpoint_brings_a_traceback(name, saved, tmp_path, capsys):
    """Half of them in the structure, which is short: at the file's beginning and end."""
    script, rng = module(name), random.Random(0)
    data, path = saved[name].read_bytes(), tmp_path / "checkpoint.pt"
    shared, ends, argv = make_shared(name, settings(name)), [], ["--evaluate", str(path)]
    places = [*range(6_000), *range(len(data) - 4_000, len(data))]
    for case in range(200):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            place = rng.choice(places) if case % 2 else rng.randrange(len(data))
            changed[place] = rng.randrange(256)
        path.unlink(missing_ok=True)  # what was mapped before keeps its own file
        path.write_bytes(changed[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        try:
            script.parse_args([*argv, "--env-id", toy(name)])
            script.restore(shared.state(), script.load_checkpoint(str(path)), str(path))
            ends.append("good")
        except SystemExit as stop:
            line = capsys.readouterr().err[:-1] if stop.code == 2 else stop.code
            assert re.fullmatch(rf"{name}\.py: error: .+", line), line
            ends.append("refused")
        assert all(weights.isfinite().all() for weights in shared.model.weights)
    assert ends.count("refused") > 50


LINKED = ["args.json", "episodes.csv", "checkpoint.pt", "replay-0.pt", "anything"]


@pytest.mark.parametrize("file", LINKED)
@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_a_run_writes_through_no_link(file, there, tmp_path):
    """In a folder that others may write to, a link would have it overwrite a file of its user's."""
    name, victim, run_dir = "acer_continuous", tmp_path / "victim", tmp_path / "run"
    if there:
        victim.write_text("precious")
    run_dir.mkdir()
    os.symlink(victim, run_dir / file)
    with pytest.raises(SystemExit) as stop:
        module(name).main(tiny(name, run_dir, "--total-timesteps 20 --num-workers 1"))
    assert re.fullmatch(rf"{name}\.py: error: .*links.*{file}.*", stop.value.code)
    assert [path.name for path in run_dir.iterdir()] == [file]
    assert victim.exists() == there
    assert not there or victim.read_text() == "precious"


def test_nor_does_a_resumed_one(saved, tmp_path):
    name, victim, run_dir = "acer_continuous", tmp_path / "victim.pt", tmp_path / "run"
    shutil.copy(saved[name], victim)
    run_dir.mkdir()
    os.symlink(victim, run_dir / "checkpoint.pt")
    before = victim.read_bytes()
    argv = ["--resume", str(run_dir), "--env-id", toy(name), "--total-timesteps", "90"]
    with pytest.raises(SystemExit) as stop:
        module(name).main(argv)
    assert "links" in stop.value.code
    assert victim.read_bytes() == before
