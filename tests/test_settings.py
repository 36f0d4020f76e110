"""The command line: help, defaults, and what is refused before anything starts."""

import re
from pathlib import Path

import pytest
import torch
from harness import ACER, SCRIPTS, is_continuous, module, sizes, tiny, toy, untrained

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
]
REFUSED_BY_ACER = [
    "--q-coef -1",
    "--replay-size 0",
    "--replay-size 30",
    "--replay-ratio -1",
    "--replay-start 0",
    "--replay-size 5000 --replay-start 6000",
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
def test_a_bad_setting_exits_2_with_one_line(name, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        module(name).main(flags.split())
    assert stop.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(rf"{name}\.py: error: .+\n", errors)
    assert "Traceback" not in errors
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ACER)
def test_a_replay_must_hold_a_segment_of_every_worker(name, capsys):
    """Of 20 steps and a last observation, and on Atari the three frames before the first."""
    flags = "--num-workers 2 --num-steps 20 --replay-start 1 --replay-size"
    least = 2 * (20 + 1 if is_continuous(name) else 20 + 4)
    assert module(name).parse_args([*flags.split(), str(least)])
    with pytest.raises(SystemExit) as stop:
        module(name).parse_args([*flags.split(), str(least - 1)])
    assert stop.value.code == 2
    assert f"give at least {least}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [("--gamma 1.5", "from 0 to 1"), ("--num-workers 0", "from 1"), ("--optimizer sgd", "adam")],
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
    """The default learning rates, which the help names, are a script's own."""
    seen = {}
    for name in SCRIPTS:
        for action in module(name).build_parser()._actions:
            words = re.sub(r"[\d.]+e-\d", "", action.help)
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
        assert rate in map(float, re.findall(r"[\d.]+e-\d+", parser_help(name, "learning_rate")))
    assert parse(["--optimizer", "rmsprop"]).learning_rate == 7e-4
    assert parse(["--optimizer", "rmsprop", "--learning-rate", "0.5"]).learning_rate == 0.5


WRONG = [("no_such_module:Id-v0", "no_such_module"), ("toys:NoSuchId-v0", "NoSuchId")]
WRONG_SCREENS = [
    *WRONG,
    ("PangNoFrameskip-v4", "Did you mean"),
    ("Pendulum-v1", "discrete"),
    ("CartPole-v1", "uint8"),
    ("toys:WrongScreen-v0", "(84, 84)"),
    ("toys:FromOne-v0", "from 1"),
]
WRONG_BOXES = [
    *WRONG,
    ("Pendulum-v7", "v1"),
    ("CartPole-v1", "Box"),
    ("boxes:Grid-v0", "flat Box"),
    ("boxes:Unbounded-v0", "finite bounds"),
    ("boxes:Matrix-v0", "flat Box"),
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
@pytest.mark.parametrize("file", ["args.json", "episodes.csv", "checkpoint.pt"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(name, file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("{}")
    with pytest.raises(SystemExit) as stop:
        module(name).main(tiny(name, tmp_path / "run"))
    assert "already" in stop.value.code
    assert [path.name for path in (tmp_path / "run").iterdir()] == [file]
    assert (tmp_path / "run" / file).read_text() == "{}"


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


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_keeps_its_optimizer_and_takes_another_step_size(name, capsys):
    torch.save(untrained(name), "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--resume", ".", "--optimizer", "rmsprop"])
    assert stop.value.code == 2
    assert "was trained with --optimizer adam" in capsys.readouterr().err
    args = module(name).parse_args(["--resume", ".", "--learning-rate", "0.125"])
    shared = module(name).make_shared(args, *sizes(name), None)
    assert shared.optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("name", SCRIPTS)
def test_how_a_run_was_once_watched_says_nothing_about_the_next_time(name):
    """A run trained with --greedy --capture-video played its last games so, and no others."""
    contents = untrained(name)
    contents["args"] |= {"greedy": True, "capture_video": True, "eval_episodes": 3}
    torch.save(contents, "checkpoint.pt")
    args = module(name).parse_args(["--evaluate", "."])
    assert (args.greedy, args.capture_video, args.eval_episodes) == (False, False, 10)
    assert args.env_id == toy(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_checkpoint_of_another_network_is_refused(name):
    other = module(name).ActorCritic(*(size + 5 for size in sizes(name)))
    torch.save(untrained(name) | {"model": other.state_dict()}, "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--evaluate", "."])
    assert "do not fit this network" in stop.value.code
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_weights_that_serve_for_evaluation_alone_cannot_be_resumed(name):
    torch.save(untrained(name), "weights.pt")
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--resume", "weights.pt"])
    assert "weights.pt lacks" in stop.value.code
    assert "optimizer" in stop.value.code
    assert "\n" not in stop.value.code
