"""The command line: help, defaults, and what is refused before anything starts."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import (
    ACER,
    ROOT,
    SCRIPTS,
    TINY,
    is_continuous,
    make_shared,
    module,
    settings,
    sizes,
    tiny,
    toy,
    untrained,
)

REFUSED = [
    "--num-workers 0",
    "--num-workers -1",
    "--num-workers two",
    "--num-workers 1.5",
    "--seed -1",
    "--seed 99999999999",
    "--gamma 1.5",
    "--gamma -0.1",
    "--gamma nan",
    "--total-timesteps 0",
    f"--total-timesteps {'9' * 400}",
    "--num-steps 0",
    "--learning-rate 0",
    "--learning-rate -1e-4",
    "--learning-rate inf",
    "--max-grad-norm 0",
    "--ent-coef -0.01",
    "--log-interval 0",
    "--checkpoint-interval -5",
    "--eval-episodes 0",
    "--optimizer sgd",
    "--no-such-flag",
    "--total 5",
    "--resume a --evaluate b",
    "--render --capture-video",
    "--resume a --run-dir b",
    "--resume ''",
    "--evaluate ''",
    "--run-dir ''",
    "--env-id ''",
    "--learning-rate 1e10",
    "--num-steps 1000000",
    "--eval-max-steps 0",
]
REFUSED_BY_ACER = [
    "--q-coef -1",
    "--replay-size 0",
    "--replay-ratio -1",
    "--replay-start 0",
    "--rho-clip 0",
    "--trust-region-delta 0",
    "--average-decay 1.1",
]
CASES = [(name, flags) for name in SCRIPTS for flags in REFUSED]
CASES += [(name, flags) for name in ACER for flags in REFUSED_BY_ACER]
CONTINUOUS = [name for name in SCRIPTS if is_continuous(name)]
CASES += [(name, "--reward-scale 0") for name in CONTINUOUS]
CASES += [
    ("acer_continuous", flags)
    for flags in ("--policy-std 0", "--dueling-samples 0", "--replay-ratio 0")
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_a_bad_setting_exits_2_with_one_line(name, flags, capsys, monkeypatch):
    monkeypatch.delattr(module(name), "start_workers")  # one that is not refused ends at once
    with pytest.raises(SystemExit) as stop:
        module(name).main(shlex.split(flags))
    assert stop.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(rf"{name}\.py: error: .+\n", errors)
    assert "Traceback" not in errors
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--gamma 1.5", "from 0.0 to 1.0"),
        ("--num-workers 0", "from 1"),
        ("--optimizer sgd", "adam or rmsprop"),
    ],
)
def test_the_line_says_what_would_do(flags, words, capsys):
    with pytest.raises(SystemExit):
        module("acer_atari").main(flags.split())
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_groups_and_a_text_for_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for title in ("run:", "evaluation:", "optimizer:", "actor-critic:"):
        assert title in text
    assert "default: None" not in text
    assert "seconds" in text
    for action in module(name).build_parser()._actions:
        assert action.help
        for flag in action.option_strings:
            assert flag in text


def test_the_same_flag_has_the_same_type_and_help_in_every_script():
    """The defaults, which the help names, are a script's own."""
    seen = {}
    for name in SCRIPTS:
        for action in module(name).build_parser()._actions:
            words = re.sub(r" \(default: .*\)$|0\.\d+", "", action.help)
            about = words, type(action), action.nargs, getattr(action.type, "__qualname__", None)
            assert seen.setdefault(action.dest, about) == about, action.dest


def test_the_same_flag_has_the_same_default_in_both_atari_scripts():
    acer, a3c = (vars(module(name).parse_args([])) for name in SCRIPTS[:2])
    differing = {name for name in set(acer) & set(a3c) if acer[name] != a3c[name]}
    assert differing == {"exp_name", "learning_rate"}


def test_the_defaults_are_those_of_the_published_runs():
    args = module("acer_atari").parse_args([])
    assert (args.gamma, args.num_steps, args.ent_coef, args.q_coef) == (0.99, 20, 0.01, 0.5)
    assert (args.replay_size, args.replay_start, args.replay_ratio) == (600_000, 10_000, 4)
    assert (args.rho_clip, args.trust_region_delta, args.average_decay) == (10, 1, 0.99)
    assert (args.max_grad_norm, args.total_timesteps) == (40, 10_000_000)
    assert args.learning_rate == 2.5e-4
    assert args.num_workers == module("acer_atari").usable_processors() >= 1
    assert args.reward_clip
    assert args.bias_correction
    assert args.trust_region


def parser_help(name: str, setting: str) -> str:
    return next(a.help for a in module(name).build_parser()._actions if a.dest == setting)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_learning_rate_follows_the_optimizer_unless_given(name):
    parse = module(name).parse_args
    for optimizer in ("adam", "rmsprop"):
        rate = parse(["--optimizer", optimizer]).learning_rate
        assert f"'{optimizer}': {rate}" in parser_help(name, "learning_rate")
    assert parse(["--optimizer", "rmsprop"]).learning_rate == 7e-4
    assert parse(["--optimizer", "rmsprop", "--learning-rate", "0.5"]).learning_rate == 0.5


WRONG = [("no_such_module:Id-v0", "no_such_module"), ("toys:NoSuchId-v0", "NoSuchId")]
WRONG_SCREENS = [
    *WRONG,
    ("PangNoFrameskip-v4", "Did you mean"),
    ("Pendulum-v1", "Discrete"),
    ("CartPole-v1", "uint8"),
    ("toys:WrongScreen-v0", "[height, width]"),
    ("trouble:Small-v0", "[height, width]"),
]
WRONG_BOXES = [
    *WRONG,
    ("Pendulum-v7", "v1"),
    ("CartPole-v1", "Box"),
    ("boxes:Unbounded-v0", "bounds"),
]
WRONG_IDS = [
    (name, *case)
    for name in SCRIPTS
    for case in (WRONG_BOXES if is_continuous(name) else WRONG_SCREENS)
]


@pytest.mark.parametrize(("name", "env_id", "words"), WRONG_IDS)
def test_an_environment_that_will_not_do_ends_with_one_line_and_no_folder(name, env_id, words):
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--env-id", env_id])
    message = stop.value.code  # a text: printed as the last line, with exit code 1
    assert message.startswith(f"{name}.py: error: --env-id {env_id}")
    assert words in message
    assert "\n" not in message
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("value", ["{", "[1]", '{"no_such_argument": 1}', '{"delay": "long"}'])
def test_arguments_that_the_environment_does_not_take_end_with_one_line(name, value):
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--env-id", toy(name), "--env-kwargs", value])
    assert stop.value.code.startswith(f"{name}.py: error: ")
    assert "\n" not in stop.value.code
    assert list(Path().iterdir()) == []


HEADER = "step,seconds,worker,return,length\n"


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("holds", ["a game", "a checkpoint"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(name, holds, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    if holds == "a game":
        (tmp_path / "run" / "episodes.csv").write_text(f"{HEADER}7,0.1,0,1,7\n")
    else:
        (tmp_path / "run" / "checkpoint.pt").write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(SystemExit) as stop:
        module(name).main(tiny(name, tmp_path / "run"))
    assert "already" in stop.value.code
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


class Evil:
    """A pickle of this would create a file when loaded."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize(
    "damage", ["missing", "half", "empty", "noise", "evil", "list", "other script"]
)
def test_a_checkpoint_that_will_not_do_ends_with_one_line(name, flag, damage):
    path = Path("checkpoint.pt")
    contents = untrained(name)
    if damage == "list":
        contents = [1, 2]
    elif damage == "other script":
        contents["script"] = "another.py"
    elif damage == "evil":
        contents["args"] = Evil()
    torch.save(contents, path)
    data = path.read_bytes()
    path.write_bytes(
        {"half": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256))}.get(damage, data)
    )
    if damage == "missing":
        path.unlink()
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(SystemExit) as stop:
        module(name).main([flag, "."])
    assert stop.value.code.startswith(f"{name}.py: error: ")
    assert "checkpoint" in stop.value.code
    assert "\n" not in stop.value.code
    assert (path.read_bytes() if path.exists() else None) == before
    assert not Path("evil").exists()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
def test_a_checkpoint_of_another_environment_is_refused(name, flag, capsys):
    torch.save(untrained(name), "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main([flag, ".", "--env-id", "PongNoFrameskip-v4"])
    assert stop.value.code == 2
    assert f"was trained with --env-id {toy(name)}" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
def test_a_network_of_other_units_is_refused(flag, capsys):
    """Its weights would fit, and mean something else."""
    torch.save(untrained("a3c_continuous"), "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module("a3c_continuous").main([flag, ".", "--activation", "relu"])
    assert stop.value.code == 2
    assert "was trained with --activation tanh" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_keeps_its_optimizer_and_takes_another_step_size(name, capsys):
    args = settings(name)
    saved = {"script": f"{name}.py", "args": vars(args), **make_shared(name, args).state()}
    torch.save(saved, "checkpoint.pt")
    again = ["--resume", ".", "--env-id", toy(name)]
    with pytest.raises(SystemExit) as stop:
        module(name).main([*again, "--optimizer", "rmsprop"])
    assert stop.value.code == 2
    assert "was trained with --optimizer adam" in capsys.readouterr().err
    args = module(name).parse_args([*again, "--learning-rate", "0.125"])
    shared = make_shared(name, args, module(name).load_checkpoint("."))
    assert shared.optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("name", SCRIPTS)
def test_how_a_run_was_once_watched_says_nothing_about_the_next_time(name):
    """A run trained with --greedy --capture-video played its last games so, and no others."""
    contents = untrained(name)
    once = {"greedy": True, "capture_video": True, "eval_episodes": 3, "eval_max_steps": 5}
    contents["args"] |= once
    torch.save(contents, "checkpoint.pt")
    args = module(name).parse_args(["--evaluate", ".", "--env-id", toy(name)])
    assert (args.greedy, args.capture_video, args.eval_episodes) == (False, False, 10)
    assert args.eval_max_steps == 27_000
    assert args.env_id == toy(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_checkpoint_of_another_network_is_refused(name):
    other = module(name).ActorCritic(*(size + 5 for size in sizes(name)))
    torch.save(untrained(name) | {"model": other.state_dict()}, "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--evaluate", ".", "--env-id", toy(name)])
    assert "does not fit this network" in stop.value.code
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_weights_that_serve_for_evaluation_alone_cannot_be_resumed(name):
    torch.save(untrained(name), "weights.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--resume", "weights.pt", "--env-id", toy(name)])
    assert "weights.pt lacks" in stop.value.code
    assert "\n" not in stop.value.code


@pytest.fixture
def asked(capsys):
    """What a checkpoint of these settings brings about: the exit code and one line."""

    def ask(name: str, changed: dict, *argv: str) -> tuple[int, str]:
        args = vars(module(name).parse_args(["--env-id", toy(name)]))
        torch.save({"script": f"{name}.py", "args": args | changed}, "checkpoint.pt")
        with pytest.raises(SystemExit) as stop:
            module(name).main(list(argv))
        output, errors = capsys.readouterr()
        assert output == ""
        return stop.value.code, errors

    return ask


WRONG_SETTINGS = [
    {"gamma": 2.0},
    {"gamma": float("nan")},
    {"gamma": None},
    {"gamma": "high"},
    {"gamma": [0.9]},
    {"gamma": torch.zeros(2, 2)},
    {"num_steps": 0},
    {"num_steps": 2.5},
    {"num_steps": True},
    {"num_steps": 10**30},
    {"num_workers": -1},
    {"seed": -1},
    {"learning_rate": 1e10},
    {"optimizer": "sgd"},
    {"optimizer": {}},
    {"anneal_lr": 1},
    {"anneal_lr": "no"},
    {"env_id": ""},
    {"env_id": 7},
    {"env_kwargs": {}},
]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize("changed", WRONG_SETTINGS, ids=lambda changed: repr(changed)[:22])
def test_a_checkpoints_settings_are_checked_as_the_command_lines_are(name, flag, changed, asked):
    code, errors = asked(name, changed, flag, ".")
    assert code == 2
    assert re.fullmatch(rf"{name}\.py: error: .+\n", errors)
    assert next(iter(changed)).replace("_", "-") in errors


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
def test_a_file_imports_no_code(name, flag, asked, tmp_path, monkeypatch):
    """Only who names a module on the command line has it imported."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("stranger.py").write_text("open('imported', 'w')")
    code, errors = asked(name, {"env_id": "stranger:Id-v0"}, flag, ".")
    assert code == 2
    assert "stranger:Id-v0" in errors
    assert "--env-id" in errors
    assert not Path("imported").exists()
    args = module(name).parse_args([flag, ".", "--env-id", "stranger:Id-v0"])
    assert args.env_id == "stranger:Id-v0"


LEAST = {  # everything as small as it may be, and three workers for two steps
    "--num-workers": 3,
    "--total-timesteps": 2,
    "--gamma": 0,
    "--gae-lambda": 0,
    "--retrace-lambda": 0,
    "--bound-coef": 0,
    "--num-steps": 1,
    "--ent-coef": 0,
    "--q-coef": 0,
    "--vf-coef": 0,
    "--learning-rate": 1e-9,
    "--max-grad-norm": 1e-9,
    "--replay-size": 1,
    "--replay-start": 1,
    "--rho-clip": 1e-9,
    "--trust-region-delta": 1e-9,
    "--average-decay": 0,
    "--dueling-samples": 1,
    "--policy-std": 1e-3,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_of_the_smallest_settings_ends_well(name, tmp_path):
    script = module(name)
    known = {row[0] for rows in script.SETTINGS.values() for row in rows}
    flags = " ".join(f"{flag} {value}" for flag, value in LEAST.items() if flag in known)
    script.main(tiny(name, tmp_path / "run", flags))
    contents = script.load_checkpoint(str(tmp_path / "run"))
    assert 2 <= contents["steps"] <= 4
    assert all(weights.isfinite().all() for weights in contents["model"].values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_discounted_and_segments_are_longer_than_games(name, tmp_path):
    script = module(name)
    flags = "--num-workers 1 --total-timesteps 100 --gamma 1 --num-steps 100000"
    script.main(tiny(name, tmp_path / "run", flags))
    contents = script.load_checkpoint(str(tmp_path / "run"))
    assert contents["steps"] == 100
    assert all(weights.isfinite().all() for weights in contents["model"].values())


@pytest.mark.parametrize("name", ACER)
@pytest.mark.parametrize("decay", [0, 1])
def test_an_average_may_follow_at_once_or_never(name, decay, tmp_path):
    script = module(name)
    flags = f"--num-workers 1 --total-timesteps 100 --average-decay {decay}"
    script.main(tiny(name, tmp_path / "run", flags))
    contents = script.load_checkpoint(str(tmp_path / "run"))
    first = make_shared(name, settings(name)).model.state_dict()
    wanted = {0: contents["model"], 1: first}[decay]
    assert all(torch.equal(x, wanted[key]) for key, x in contents["average_model"].items())
    assert not all(torch.equal(x, first[key]) for key, x in contents["model"].items())


def test_a_terminal_that_knows_ascii_alone_is_enough(tmp_path):
    """As in a container without a locale, where Greek letters of the help end the program."""
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT / "tests"), "PATH": ""}
    train = f"{TINY['a3c_continuous']} --num-workers 1 --total-timesteps 30 --run-dir γ"
    for flags, words in (("--help", "discount per agent step"), (train, "finished")):
        command = [sys.executable, str(ROOT / "a3c_continuous.py"), *flags.split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout
        assert done.stdout.isascii()
