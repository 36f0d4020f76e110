"""What a run writes, that it repeats, goes on, and is evaluated."""

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from harness import (
    ACER,
    ROOT,
    SCRIPTS,
    TINY,
    Run,
    is_continuous,
    make_shared,
    module,
    settings,
    tiny,
    toy,
    untrained,
    wait_for,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OFF_POLICY = {"q_loss", "rho", "truncated_weights", "average_policy_kl", "trust_region_active"}
LOSSES = {
    "acer_atari": OFF_POLICY | {"entropy"},
    "a3c_recurrent_atari": {"value_loss", "entropy"},
    "acer_continuous": OFF_POLICY | {"value_loss"},  # of a fixed σ, so the entropy is fixed, too
    "a3c_continuous": {"value_loss", "entropy", "policy_std"},
}


def train(name: str, run_dir, flags: str = ""):
    script = module(name)
    return script.train(script.parse_args(tiny(name, run_dir, flags)))


def resume(name: str, run_dir, flags: str):
    script = module(name)
    argv = ["--resume", str(run_dir), "--env-id", toy(name), *flags.split()]
    return script.train(script.parse_args(argv))


@pytest.fixture(scope="module", params=SCRIPTS)
def finished(request, tmp_path_factory):
    """A run of one worker, long enough to report losses once."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(request.param, run_dir, "--num-workers 1 --total-timesteps 1003 --log-interval 1")
    return request.param, run_dir


@pytest.fixture
def copied(finished, tmp_path):
    name, run_dir = finished
    return name, shutil.copytree(run_dir, tmp_path / "copy")


def checkpoint(run_dir) -> dict:
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def rows(run_dir) -> list[dict]:
    with open(run_dir / "episodes.csv") as file:
        return list(csv.DictReader(file))


def scalars(run_dir) -> dict[str, list]:
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_the_budget_of_one_worker_is_met_exactly(finished):
    assert checkpoint(finished[1])["steps"] == 1003


def test_a_line_is_written_for_every_game(finished):
    _, run_dir = finished
    games = rows(run_dir)
    assert list(games[0]) == ["step", "seconds", "worker", "return", "length"]
    assert len(games) == 1003 // 7
    assert [int(game["step"]) for game in games] == list(range(7, 1003, 7))
    assert {game["length"] for game in games} == {"7"}
    assert {game["return"] for game in games} == {"1", "-1"}
    seconds = [float(game["seconds"]) for game in games]
    assert seconds == sorted(seconds)


def test_tensorboard_reads_the_events_over_agent_steps(finished):
    name, run_dir = finished
    found = scalars(run_dir)
    common = {"policy_loss", "grad_norm", "target", "prediction", "explained_variance"}
    assert {f"losses/{tag}" for tag in common | LOSSES[name]} <= set(found)
    assert {"charts/episodic_return", "charts/episodic_length", "charts/SPS"} <= set(found)
    assert ("charts/replay_steps" in found) == ("charts/replay_MB" in found) == (name in ACER)
    steps = [event.step for event in found["charts/episodic_return"]]
    assert steps == [int(game["step"]) for game in rows(run_dir)]
    assert all(np.isfinite(event.value) for events in found.values() for event in events)
    if not is_continuous(name):
        assert 0 < found["losses/entropy"][0].value <= np.log(2) + 1e-6


def test_the_settings_are_kept_and_the_checkpoint_holds_plain_values(finished):
    name, run_dir = finished
    assert json.loads((run_dir / "args.json").read_text())["num_steps"] == 5
    contents = checkpoint(run_dir)  # weights_only: anything else would have been refused
    assert contents["script"] == f"{name}.py"
    assert contents["args"]["total_timesteps"] == 1003
    assert contents["seconds"] > 0
    leftovers = [path.name for path in run_dir.iterdir() if path.suffix == ".tmp"]
    assert leftovers == []
    assert len(list(run_dir.glob("events*"))) == 1, "one writer for the whole run"


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("name", SCRIPTS)
def test_one_worker_repeats_bit_by_bit_and_another_seed_does_not(name, tmp_path):
    flags = "--num-workers 1 --total-timesteps 300 --seed"
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        # How often it prints and saves must not matter.
        often = "--log-interval 0.1 --checkpoint-interval 0.1" if folder == "b" else ""
        train(name, tmp_path / folder, f"{flags} {seed} {often}")
    a, b, c = (checkpoint(tmp_path / folder) for folder in "abc")
    assert len(tensors(a)) >= 16
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(*map(weights, (a, c)), strict=True))
    games = [[(g["step"], g["return"]) for g in rows(tmp_path / f)] for f in "abc"]
    assert games[0] == games[1] != games[2]


def weights(contents: dict) -> list[torch.Tensor]:
    return [tensor for name, tensor in contents["model"].items() if name.endswith("weight")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_large_scores_are_written_whole(name, tmp_path):
    script = module(name)
    log = script.RunLog(tmp_path, script.parse_args([]), 0, 0.0)
    log.episode(10, 0, 1_234_567.0, 7)
    assert [row["return"] for row in rows(tmp_path)] == ["1234567"], "also when killed right now"
    log.close()


NEVER = "unknown time left"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_progress_line_says_what_happened_since_the_last(name, tmp_path, monkeypatch, capsys):
    """Two logs, as before and after a stop: 50 seconds of 2 steps, 10 of 30, 20 of 5, 10 of 0."""
    script = module(name)
    monkeypatch.setattr(script, "time", SimpleNamespace(monotonic=lambda: now))
    args = script.parse_args(["--total-timesteps", "1000"])
    now = 1000.0
    log = script.RunLog(tmp_path, args, 0, 0.0)
    now += 50
    log.progress(100)
    log.episode(90, 0, -3.0, 40)
    log.episode(100, 0, 1.0, 60)
    now += 10
    for rank, steps in ((0, 999), (1, 2000), (0, 1500)):  # the latest of each worker counts
        log.statistics(400, rank, {"policy_loss": 1.5}, {"replay_steps": steps})
    log.progress(400)
    log.close()
    args.resume = str(tmp_path)
    now = 5000.0
    log = script.RunLog(tmp_path, args, 400, 60.0)
    now += 20
    log.episode(450, 0, 2.0, 20)
    log.progress(500)
    now += 10
    log.progress(500)
    log.close()
    lines = [re.split(r" +\| +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines] == [
        ["100 steps  10.0%", "2 steps/s", "0:07:30 left", "no game over yet"],
        [
            "400 steps  40.0%",
            "30 steps/s",
            "0:00:20 left",
            "return -1.00, length 50 (last 2 games)",
        ],
        ["500 steps  50.0%", "5 steps/s", "0:01:40 left", "return 0.00, length 40 (last 3 games)"],
        ["500 steps  50.0%", "0 steps/s", NEVER, "return 0.00, length 40 (last 3 games)"],
    ]
    assert lines[1][4:] == ["replay steps 3,500"]
    assert [event.value for event in scalars(tmp_path)["charts/replay_steps"]] == [999, 2999, 3500]
    assert [event.value for event in scalars(tmp_path)["charts/SPS"]] == [2, 30, 5, 0]
    assert [float(row["seconds"]) for row in rows(tmp_path)] == [50, 50, 80]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_gif_has_the_colours_and_the_pace_of_its_frames(name, tmp_path):
    script, path = module(name), tmp_path / "a.gif"
    frames = [np.full((20, 20, 3), colour, np.uint8) for colour in ([200, 0, 0], [0, 0, 200])]
    script.write_gif(path, frames, 130)
    _, animation = cv2.imreadanimation(str(path))
    colours = [frame[10, 10, :3].tolist() for frame in animation.frames]  # blue, green, red
    np.testing.assert_allclose(colours, [[0, 0, 200], [200, 0, 0]], atol=40)
    assert list(animation.durations.flat) == [130, 130]
    assert list(tmp_path.iterdir()) == [path]


def write_half(script, path, error) -> None:
    with script.replacing(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_write_that_fails_leaves_the_file_before_and_nothing_else(name, tmp_path):
    script, path = module(name), tmp_path / "checkpoint.pt"
    with script.replacing(path) as file:
        file.write(b"one")
    for error in (OSError("no space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_half(script, path, error)
        assert path.read_bytes() == b"one"
        assert list(tmp_path.iterdir()) == [path]
    with script.replacing(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one", "until all is written"
    assert path.read_bytes() == b"two"


@pytest.mark.parametrize("name", SCRIPTS)
def test_workers_and_seeds_have_streams_of_their_own(name, monkeypatch):
    """Seed + rank would give worker 1 of seed 1 what worker 0 of seed 2 has."""
    script = module(name)
    make_env = script.make_env
    games, actions = [], []

    def record_game(env_id, seed, **kwargs):
        games.append(seed)
        return make_env(env_id, seed, **kwargs)

    def record_actions(actor, *arguments):
        actions.append(actor.generator.initial_seed())
        raise InterruptedError

    args = settings(name, "--num-workers 3")
    shared = make_shared(name, args)
    monkeypatch.setattr(script, "make_env", record_game)
    monkeypatch.setattr(script.Actor, "act", record_actions)
    for args.seed, rank, shared.start in itertools.product((1, 2, 3), (0, 1, 2), (0, 100)):
        with pytest.raises(InterruptedError):
            script.worker(rank, args, shared, None)
    assert len(set(games + actions)) == 36


def test_a_run_goes_on_where_it_stopped(copied):
    name, run_dir = copied
    before, seen = checkpoint(run_dir), rows(run_dir)
    late = "1200,99.0,0,5,7\n"  # what a run wrote after its last checkpoint is cut
    with open(run_dir / "episodes.csv", "a") as file:
        file.write(late + "994,99.0,0,5,7\0\0\n12")  # and lines that a full disk has cut short
    resume(name, run_dir, "--total-timesteps 1300 --num-workers 2")
    after, games = checkpoint(run_dir), rows(run_dir)
    assert 1300 <= after["steps"] <= 1305
    assert after["seconds"] > before["seconds"]
    assert len(games) > len(seen)
    assert games[: len(seen)] == seen
    assert all(int(game["step"]) > 1003 for game in games[len(seen) :])
    assert all(float(game["seconds"]) >= before["seconds"] for game in games[len(seen) :])
    assert "5" not in {game["return"] for game in games}
    assert after["args"]["num_steps"] == 5, "settings are the run's own"
    assert after["args"]["num_workers"] == 2, "unless a flag changes one"
    if is_continuous(name):
        count = after["observed"]["total"][0]
        assert (count == after["steps"]).all(), "what was seen before the stop counts on"
    settings_kept = json.loads((run_dir / "args.json").read_text())
    assert settings_kept == after["args"] | {"run_dir": str(run_dir)}
    steps = [event.step for event in scalars(run_dir)["charts/episodic_return"]]
    assert sorted(steps) == sorted(int(game["step"]) for game in games)
    if "average_model" in before:
        count = next(iter(after["optimizer"]["state"].values()))["step"]
        assert count > next(iter(before["optimizer"]["state"].values()))["step"]
    resume(name, run_dir, "--total-timesteps 1350 --num-workers 1")
    assert rows(run_dir)[: len(games)] == games
    assert checkpoint(run_dir)["steps"] >= 1350


def test_a_resumed_run_begins_with_the_weights_and_moments_of_its_checkpoint(copied, monkeypatch):
    name, run_dir = copied
    script, saved = module(name), checkpoint(run_dir)
    argv = ["--resume", str(run_dir), "--env-id", toy(name), "--total-timesteps", "2000"]
    shared = make_shared(name, script.parse_args(argv), saved)
    assert shared.steps() == 1003
    restored = {"model": shared.model.state_dict(), "optimizer": shared.optimizer.state_dict()}
    if name in ACER:
        restored["average_model"] = shared.average_model.state_dict()
    for key, value in restored.items():
        pairs = zip(tensors(value), tensors(saved[key]), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
        assert all(tensor.is_shared() for tensor in tensors(value))
    if is_continuous(name):
        assert torch.equal(shared.observed.total(), saved["observed"]["total"])
        assert (saved["observed"]["total"][0] == 1003).all()
        assert shared.observed.rows.is_shared()


def test_tensorboard_drops_what_came_after_the_checkpoint(copied):
    """The events of a run that was killed reach further than its checkpoint."""
    name, run_dir = copied
    contents = checkpoint(run_dir)
    contents["steps"] = 700
    torch.save(contents, run_dir / "checkpoint.pt")
    resume(name, run_dir, "--total-timesteps 1003")
    steps = [event.step for event in scalars(run_dir)["charts/episodic_return"]]
    assert steps == [int(game["step"]) for game in rows(run_dir)]
    assert len(steps) == len(set(steps))
    assert max(step for step in steps if step <= 700) == 700


def test_a_run_goes_on_from_its_own_checkpoint_alone(copied):
    """Another file's curves would be cut, and its checkpoint overwritten."""
    name, run_dir = copied
    shutil.copy(run_dir / "checkpoint.pt", run_dir / "best.pt")
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    argv = ["--resume", str(run_dir / "best.pt"), "--env-id", toy(name)]
    with pytest.raises(SystemExit) as stop:
        module(name).main([*argv, "--total-timesteps", "2000"])
    assert re.fullmatch(rf"{name}\.py: error: .*best\.pt.*", stop.value.code)
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before


def test_a_finished_run_says_how_to_go_further(copied):
    name, run_dir = copied
    with pytest.raises(SystemExit, match="larger --total-timesteps"):
        resume(name, run_dir, "")


def updates_of(name: str, args, shared, tmp_path, monkeypatch) -> list[int]:
    """Run a worker here; return the steps taken so far at each of its updates."""
    script, learned = module(name), []
    apply_gradients, args.run_dir = script.apply_gradients, str(tmp_path)

    def record(*arguments):
        learned.append(int(shared.steps_taken.sum()))
        return apply_gradients(*arguments)

    monkeypatch.setattr(script, "apply_gradients", record)
    script.worker(0, args, shared, Silent())
    return learned


def acted(name: str, monkeypatch, see=lambda actor: None) -> tuple[list, list]:
    """Record all segments from now on, and what there was to see before each."""
    script, segments, seen = module(name), [], []
    act = script.Actor.act

    def record(actor, *arguments):
        seen.append(see(actor))
        segment, episode = act(actor, *arguments)
        segments.append(segment)
        return segment, episode

    monkeypatch.setattr(script.Actor, "act", record)
    return segments, seen


class Silent:
    def send(self, message):
        pass


@pytest.mark.parametrize("name", ACER)
def test_replays_follow_a_poisson_law(name, tmp_path, monkeypatch):
    """200 segments with 1.5 replays each: the mean's standard error is 0.087.

    On Atari each segment is learned from once when it is new, too.
    """
    args = settings(name, "--replay-ratio 1.5 --total-timesteps 750")
    segments, _ = acted(name, monkeypatch)
    learned = updates_of(name, args, make_shared(name, args), tmp_path, monkeypatch)
    ends = np.cumsum([len(segment.rewards) for segment in segments])
    when_new = 0 if is_continuous(name) else 1
    replays = np.array([learned.count(end) - when_new for end in ends])
    assert not replays[ends < 50].any()
    replays = replays[ends >= 50]
    assert len(replays) > 180
    assert np.mean(replays) == pytest.approx(1.5, abs=4 * 0.087)
    assert np.var(replays) == pytest.approx(1.5, abs=0.6)


def test_a_lost_life_begins_no_new_game_in_the_replay(tmp_path, monkeypatch):
    """The stacks after it go on: brighter by 20 from frame to frame."""
    script = module("acer_atari")
    flags = "--env-id toys:Lives-v0 --num-steps 6 --total-timesteps 33 --replay-start 600"
    args = settings("acer_atari", flags)
    buffers, replay_buffer = [], script.ReplayBuffer

    def record(*arguments):
        buffers.append(replay_buffer(*arguments))
        return buffers[-1]

    shared = make_shared("acer_atari", args)
    monkeypatch.setattr(script, "ReplayBuffer", record)
    updates_of("acer_atari", args, shared, tmp_path, monkeypatch)
    (replay,), rng = buffers, np.random.default_rng(0)
    drawn = [replay.sample(rng).observations[:, :, 0, 0].long() // 20 for _ in range(100)]
    assert {int(stacks[0, -1]) for stacks in drawn} == {0, 4, 8}
    for stacks in drawn:
        last = stacks[:, -1:]
        assert torch.equal(stacks, (last + torch.arange(-3, 1)).clamp_min(0))


@pytest.mark.parametrize("name", ACER)
def test_a_resumed_run_fills_an_empty_replay_before_it_learns_from_it(name, tmp_path, monkeypatch):
    args = settings(name, "--total-timesteps 1150 --replay-start 80")
    shared = make_shared(name, args)
    shared.start = shared.replay_since = 1000
    learned = updates_of(name, args, shared, tmp_path, monkeypatch)
    most = 0 if is_continuous(name) else 1
    assert all(learned.count(end) == most for end in set(learned) if end < 80)
    assert len(learned) > len(set(learned))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_learning_rate_falls_linearly_to_zero_if_asked(name, tmp_path, monkeypatch):
    args = settings(name, "--total-timesteps 400 --anneal-lr --learning-rate 1e-3")
    shared = make_shared(name, args)
    shared.start = 300
    rate = lambda actor: (shared.steps(), shared.optimizer.param_groups[0]["lr"])  # noqa: E731
    _, rates = acted(name, monkeypatch, rate)
    updates_of(name, args, shared, tmp_path, monkeypatch)
    assert len(rates) > 20
    assert rates[0][0] == 300
    assert all(rate == pytest.approx(1e-3 * (1 - step / 400)) for step, rate in rates)


def test_evaluation_prints_every_game_and_a_summary(finished, capsys):
    name, run_dir = finished
    script = module(name)
    for source in (run_dir, run_dir / "checkpoint.pt"):
        argv = ["--evaluate", str(source), "--env-id", toy(name), "--eval-episodes", "9"]
        script.main(argv)
        lines = capsys.readouterr().out.splitlines()
        games = [float(re.search(r"return (\S+),", line)[1]) for line in lines[:-1]]
        assert len(games) == 9
        numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", lines[-1])]
        assert 2 <= numbers.pop(1) <= 9, "games that differ in their actions"
        wanted = [9, np.mean(games), np.std(games), np.median(games), min(games), max(games)]
        np.testing.assert_allclose(numbers, wanted, atol=0.01)


@pytest.mark.parametrize("name", SCRIPTS)
def test_evaluation_counts_rewards_as_they_are(name, tmp_path):
    """Ten steps that pay 0 or 3 each; clipped or scaled they would pay 1 or 0.3 at most."""
    script = module(name)
    torch.save(untrained(name, toy(name, "Counting")), tmp_path / "weights.pt")
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--env-id", toy(name, "Counting")]
    returns = script.evaluate(script.parse_args(argv))
    assert len(returns) == 10
    assert all(value % 3 == 0 for value in returns)
    assert max(returns) > 10


def test_greedy_evaluation_repeats_and_takes_the_most_probable_action(finished):
    name, run_dir = finished
    script = module(name)
    argv = ["--evaluate", str(run_dir), "--eval-episodes", "20", "--greedy"]
    argv += ["--env-id", toy(name)]
    returns = [script.evaluate(script.parse_args(argv)) for _ in range(2)]
    assert returns[0] == returns[1]


def test_a_video_of_the_first_game_is_an_animated_gif(finished, tmp_path):
    """Weights, settings and the script's name are all that evaluation needs."""
    name, run_dir = finished
    keys = ["script", "args", "model", *(["observed"] if is_continuous(name) else [])]
    contents = {key: checkpoint(run_dir)[key] for key in keys}
    torch.save(contents, tmp_path / "weights.pt")
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--eval-episodes", "2", "--capture-video"]
    module(name).main([*argv, "--env-id", toy(name)])
    (path,) = tmp_path.rglob("*.gif")
    read, animation = cv2.imreadanimation(str(path))
    assert read
    assert len(animation.frames) == 7
    assert animation.frames[0].shape[:2] == (84, 84)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_copied_alone_into_an_empty_folder_trains_resumes_and_evaluates(name, tmp_path):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}  # for the toy environment alone

    def call(flags: str) -> str:
        command = [sys.executable, f"{name}.py", *flags.split()]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(f"{TINY[name]} --num-workers 2 --total-timesteps 100")
    (run_dir,) = (tmp_path / "runs").iterdir()
    begins = f"{toy(name).replace(':', '-')}__{name}__1__"
    assert re.fullmatch(rf"{begins}\d{{8}}-\d{{6}}-\d+", run_dir.name)
    own = f"--env-id {toy(name)}"
    assert "finished" in call(f"--resume {run_dir} {own} --total-timesteps 150 --num-workers 1")
    assert "3 games, " in call(f"--evaluate {run_dir} {own} --eval-episodes 3")


def test_a_run_begins_or_goes_on_as_its_folder_says(tmp_path):
    """The same command in a script of a cluster that starts it again and again."""
    name, run_dir = "acer_continuous", tmp_path / "run"
    argv = tiny(name, run_dir, "--resume-if-exists --num-workers 1 --total-timesteps")
    module(name).main([*argv, "100"])
    games = rows(run_dir)
    assert checkpoint(run_dir)["steps"] == 100
    module(name).main([*argv, "200"])
    assert checkpoint(run_dir)["steps"] == 200
    assert rows(run_dir)[: len(games)] == games
    assert len(rows(run_dir)) > len(games)
    with pytest.raises(SystemExit, match="larger --total-timesteps"):
        module(name).main([*argv, "200"])
    assert len(list(run_dir.glob("events*"))) == 2


def refusal(script, argv: list[str]) -> str:
    """Return the line of a run that is refused, and keep nothing of it: it holds the lock."""
    try:
        script.main(argv)
    except SystemExit as stop:
        return str(stop.code)
    return "nothing was refused"


@pytest.mark.parametrize("name", SCRIPTS)
def test_printed_commands_can_be_pasted(name, tmp_path, capsys):
    """Also where a folder's name holds blanks, quotes and an end of its own."""
    script, run_dir = module(name), tmp_path / "my 'best' runs; $HOME" / "a b"
    argv = [*TINY[name].split(), "--run-dir", str(run_dir), "--num-workers", "1"]
    script.main([*argv, "--total-timesteps", "30"])
    finished = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(finished.partition("play with: ")[2])
    assert command == ["python", f"{name}.py", "--evaluate", str(run_dir), "--env-id", toy(name)]
    script.main([*command[2:], "--eval-episodes", "1"])
    command = shlex.split(refusal(script, [*argv, "--total-timesteps", "60"]).partition("or ")[2])
    assert command == ["--resume", str(run_dir)]
    script.main([*command, "--env-id", toy(name), "--total-timesteps", "60"])
    assert checkpoint(run_dir)["steps"] == 60


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    script, names = module("acer_atari"), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script.time, "strftime", lambda *_: "20260101-000000")
    for process in (7, 8):
        monkeypatch.setattr(script.os, "getpid", lambda process=process: process)
        args = script.parse_args([])
        with script.make_run_dir(args):
            names.append(args.run_dir)
    assert len(set(names)) == 2


def stored(run_dir) -> int:
    """Count the replay's steps, which lie beside the checkpoint."""
    script, contents = module("acer_continuous"), checkpoint(run_dir)
    buffer = script.ReplayBuffer(10**9, 3, 2)
    for path in run_dir.glob("replay-*.pt"):
        if torch.load(path)["session"] == contents["session"]:
            buffer.load(path)
    return buffer.steps


@pytest.fixture
def process(tmp_path):
    """A run of continuous ACER in a process of its own, which plays and learns."""
    flags = "--num-workers 2 --total-timesteps 1000000 --log-interval 0.2 --replay-size 100000"
    argv = tiny("acer_continuous", tmp_path / "run", f"{flags} --checkpoint-interval 0.5")
    run = Run("acer_continuous", argv, tmp_path)
    try:
        wait_for(lambda: (tmp_path / "run" / "checkpoint.pt").exists())
        wait_for(lambda: checkpoint(tmp_path / "run")["steps"] > 300)
        yield run
    finally:
        run.kill_group()


def test_the_replay_survives_a_stop_and_another_number_of_workers(process, tmp_path, capsys):
    run_dir, again = tmp_path / "run", "--num-workers 3 --total-timesteps"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    steps, kept = checkpoint(run_dir)["steps"], stored(run_dir)
    assert kept == steps
    resume("acer_continuous", run_dir, f"{again} {steps + 60}")
    assert "the replay starts empty" not in capsys.readouterr().out
    assert stored(run_dir) == checkpoint(run_dir)["steps"] >= steps + 60


def test_after_a_kill_a_run_says_that_its_replay_is_lost_and_no_curve_goes_twice(
    process, tmp_path, capsys
):
    """The events of the killed run reach further than its checkpoint."""
    run_dir = tmp_path / "run"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    steps = checkpoint(run_dir)["steps"]
    resume("acer_continuous", run_dir, f"--num-workers 1 --total-timesteps {steps + 500}")
    assert capsys.readouterr().out.count("the replay starts empty") == 1
    assert stored(run_dir) == 500
    shown = [event.step for event in scalars(run_dir)["charts/episodic_return"]]
    assert shown == [int(game["step"]) for game in rows(run_dir)]
    assert max(shown) == checkpoint(run_dir)["steps"] - 500 % 7 or max(shown) > steps


def test_nor_does_one_of_a_run_that_was_killed_before_its_first_checkpoint(tmp_path):
    """It goes on from step 0: all that it showed before is to be forgotten."""
    run_dir = tmp_path / "run"
    flags = "--num-workers 2 --total-timesteps 1000000 --log-interval 0.2"
    run = Run("a3c_continuous", tiny("a3c_continuous", run_dir, flags), tmp_path)
    try:
        wait_for(lambda: run.output.read_text().count(" steps/s ") > 2 and rows(run_dir))
        run.kill_group()
        assert checkpoint(run_dir)["steps"] == 0
        resume("a3c_continuous", run_dir, "--num-workers 1 --total-timesteps 100")
    finally:
        run.kill_group()
    shown = [event.step for event in scalars(run_dir)["charts/episodic_return"]]
    assert shown == [int(game["step"]) for game in rows(run_dir)] == list(range(7, 100, 7))


def test_weights_do_not_depend_on_the_number_of_threads(tmp_path):
    """Orthogonal ones have other last bits on more threads, and so has all that follows."""
    name = "a3c_recurrent_atari"  # of the largest matrices
    for threads in ("1", "2"):
        argv = tiny(name, tmp_path / threads, "--num-workers 1 --total-timesteps 60")
        command = [sys.executable, str(ROOT / f"{name}.py"), *argv]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    one, two = (tensors(checkpoint(tmp_path / threads)["model"]) for threads in ("1", "2"))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
