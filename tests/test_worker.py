"""What a worker does from step to step, run in this process with everything it calls recorded."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from harness import (
    ACER,
    ATARI,
    CONTINUOUS,
    SCRIPTS,
    is_continuous,
    make_shared,
    module,
    settings,
    toy,
    untrained,
)


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one, two) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def distance(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(torch._foreach_sub(one, two)))


def record(name: str, args, monkeypatch, *, rank=0, taken=(0,), start=0, optimizer=None, seen=None):
    """Run a worker; return its calls as lists of what there was to see, in their order.

    Args:
        taken: steps that the workers have taken already.
        start: steps of the run before it was resumed.
        optimizer: in place of the run's own, a function of the weights.
        seen: observations that the statistics have already, [N, D].
    """
    script = module(name)
    args.num_workers, args.average_decay = len(taken), 0.9
    shared = make_shared(name, args)
    shared.steps_taken.copy_(torch.tensor(taken))
    shared.start = shared.replay_since = start
    if optimizer:
        shared.optimizer = optimizer(shared.model.weights)
    if seen is not None:
        shared.observed.add(rank, seen)
    calls = SimpleNamespace(acted=[], learned=[], reports=[], summarised=[], shared=shared)
    loss_name = "acer_loss" if name in ACER else "a3c_loss"
    act, loss = script.Actor.act, getattr(script, loss_name)
    apply_gradients, summarise = script.apply_gradients, script.summarise

    def recording_act(actor, num_steps, stop):
        generator = torch.Generator()
        generator.set_state(actor.generator.get_state())
        current = same(actor.model, shared.model)
        segment, episode = act(actor, num_steps, stop)
        # The weights are those that acted: nothing is learned in between.
        check_acting(name, args, actor, segment, generator.get_state())
        over = episode is not None
        calls.acted.append(SimpleNamespace(segment=segment, over=over, current=current))
        calls.acted[-1].normalizer = getattr(actor, "normalizer", None)
        return segment, episode

    def recording_loss(model, *arguments):
        segment = next(x for x in arguments if isinstance(x, script.Segment))
        current = same(model, shared.model)
        call = SimpleNamespace(segment=segment, current=current, after=len(calls.acted))
        calls.learned.append(call)
        if name in ACER:
            assert arguments[0] is shared.average_model
        return loss(model, *arguments)

    def recording_apply_gradients(*arguments):
        before = weights(shared.model)
        norm = apply_gradients(*arguments)
        call = calls.learned[-1]
        call.moved = distance(before, weights(shared.model))
        call.norm = float(norm["grad_norm"])
        return norm

    def recording_update_average(average_model, shared_model, decay_given):
        old, new, decay = weights(average_model), weights(shared.model), args.average_decay
        update_average(average_model, shared_model, decay_given)
        wanted = [decay * a + (1 - decay) * b for a, b in zip(old, new, strict=True)]
        found = weights(shared.average_model)
        assert distance(found, wanted) < 0.1 * distance(found, old)
        calls.learned[-1].averaged = True

    def recording_summarise(updates):
        calls.summarised.append(len(updates))
        return summarise(updates)

    class Connection:
        def send(self, message):
            calls.reports.append((message, shared.steps()))

    monkeypatch.setattr(script.Actor, "act", recording_act)
    monkeypatch.setattr(script, loss_name, recording_loss)
    monkeypatch.setattr(script, "apply_gradients", recording_apply_gradients)
    monkeypatch.setattr(script, "summarise", recording_summarise)
    if name in ACER:
        update_average = script.update_average
        monkeypatch.setattr(script, "update_average", recording_update_average)
    with tempfile.TemporaryDirectory() as args.run_dir:
        script.worker(rank, args, shared, Connection())
        calls.left = {path.name: torch.load(path) for path in Path(args.run_dir).iterdir()}
    return calls


def check_acting(name: str, args, actor, segment, state) -> None:
    """Check that what is stored of the policy is what acted, and the actions what it drew."""
    with torch.no_grad():
        if name == "acer_atari":
            torch.testing.assert_close(segment.mu, actor.model(segment.observations[:-1])[0])
        if is_continuous(name):
            policy = actor.model.policy(actor.normalizer(segment.observations[:-1]))
            mean, std = (policy, args.policy_std) if name in ACER else policy
            if name in ACER:
                torch.testing.assert_close(segment.mu_mean, mean)
            generator = torch.Generator()
            generator.set_state(state)
            noise = torch.randn(args.num_steps, 2, generator=generator)[: len(mean)]
            torch.testing.assert_close(segment.actions, mean + std * noise)


@pytest.fixture(scope="module", params=SCRIPTS)
def small_run(request):
    """The second of two workers in a resumed run: 1,000 steps before, 500 of the other, 105 here.

    Games of seven steps, segments of five and two; a report every 35 steps, replays after 50.
    """
    name = request.param
    args = settings(name, "--total-timesteps 1605" + " --replay-start 550" * (name in ACER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module(name), "STATISTICS_EVERY", 35)
        return name, record(name, args, patch, rank=1, taken=(500, 0), start=1000)


def reports(calls, kind: str) -> list[tuple]:
    return [message for message, _ in calls.reports if message[0] == kind]


def test_every_segment_and_every_replay_begins_with_the_shared_weights(small_run):
    _, calls = small_run
    assert len(calls.learned) > 15
    assert all(call.current for call in [*calls.acted, *calls.learned])
    assert all(call.moved > 0 for call in calls.learned)


def test_a_segment_is_learned_when_it_was_acted_and_replays_come_after_the_replays_start(small_run):
    """The start counts the steps of all workers since the run went on, 500 of another among them.

    Continuous ACER learns from its replay alone.
    """
    name, calls = small_run
    new = [call.segment.actions.tolist() for call in calls.acted]
    learned = [(call.after, call.segment.actions.tolist()) for call in calls.learned]
    fresh = [(after, actions) for after, actions in learned if actions == new[after - 1]]
    if name != "acer_continuous":
        assert [actions for _, actions in fresh][:14] == new[:14]
        first = [after for after, _ in learned]
        assert first[: len(set(first[:14]))] == list(range(1, 15))[: len(set(first[:14]))]
    if name in ACER:
        assert all(call.averaged for call in calls.learned)
        replayed = [after for after, actions in learned if actions != new[after - 1]]
        # Steps 5, 7, 12, 14, ...: the fifteenth segment is the first to end at or after step 50.
        assert min(replayed) >= 15
        assert len(replayed) > 5
        assert all(actions in new[:after] for after, actions in learned)
    else:
        assert learned == list(enumerate(new, 1))


def test_reports_carry_the_steps_of_the_whole_run(small_run):
    """They are what curves are drawn over."""
    name, calls = small_run
    episodes, statistics = reports(calls, "episode"), reports(calls, "statistics")
    assert [message[1:3] for message in episodes] == [(n, 1) for n in range(1507, 1606, 7)]
    assert {message[4] for message in episodes} == {7}
    assert {message[3] for message in episodes} == {-1, 1}
    assert [message[1:3] for message in statistics] == [(1535, 1), (1570, 1), (1605, 1)]
    assert all(message[1] == now for message, now in calls.reports)
    if name in ACER:
        assert [message[4]["replay_steps"] for message in statistics] == [35, 70, 105]
        packed = sum(len(module(name).pack(call.segment)) for call in calls.acted)
        assert statistics[-1][4]["replay_MB"] == pytest.approx(packed / 1e6)
    if name == "acer_continuous":  # it learns from its replay alone, which is not used at first
        assert statistics[0][3] == {}
    assert statistics[2][3]["grad_norm"] > 0


def test_every_update_is_in_one_report(small_run):
    _, calls = small_run
    assert sum(calls.summarised) == len(calls.learned)


def test_the_replay_is_left_for_the_runs_next_start(small_run):
    name, calls = small_run
    assert list(calls.left) == (["replay-1.pt"] if name in ACER else [])
    for left in calls.left.values():
        packed = b"".join(module(name).pack(call.segment) for call in calls.acted)
        assert left["data"].numpy().tobytes() == packed
        assert left["session"] == calls.shared.session


@pytest.mark.parametrize("name", ACER)
def test_a_worker_goes_on_with_its_share_of_the_replay_that_was_left(name, monkeypatch, tmp_path):
    """The second of two workers takes the second and fourth segment of each file."""
    script, args, loaded = module(name), settings(name, "--num-workers 2"), []
    shared = make_shared(name, args)
    sizes = (3, 2) if is_continuous(name) else (2,)
    shared.replay_files = [tmp_path / "one.pt", tmp_path / "two.pt"]
    monkeypatch.setattr(script.ReplayBuffer, "load", lambda *given: loaded.append(given))
    monkeypatch.setattr(script, "make_env", stop)
    with pytest.raises(InterruptedError):
        script.worker(1, args, shared, None)
    assert [given[1:] for given in loaded] == [(path, 1, 2) for path in shared.replay_files]
    assert {(given[0].capacity, given[0].sizes) for given in loaded} == {(300, sizes)}


def stop(*arguments, **options):
    raise InterruptedError


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stop_takes_effect_after_the_current_step_and_ends_no_game(name, monkeypatch):
    script, args = module(name), settings(name)
    shared, step = make_shared(name, args), toys.DelayedCue.step
    generator = torch.Generator().manual_seed(0)
    env = script.make_env(args.env_id, 0)

    def stop_at_the_third(self, action):
        shared.stop.fill_(self.time == 2)
        return step(self, action)

    monkeypatch.setattr(toys.DelayedCue, "step", stop_at_the_third)
    actor = script.Actor(args, env, shared, shared.model, generator)
    segment, episode = actor.act(5, shared.stop)
    assert len(segment.rewards) == len(segment.observations) - 1 == 3
    assert (segment.terminated, episode) == (False, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_learner_sees_rewards_as_the_flags_say(name, monkeypatch):
    """Counting pays 0 or 3: the sign of it, a tenth of it, or as it is."""
    flags = {"--reward-scale 1": 3, "": 0.3} if is_continuous(name) else {"--no-reward-clip": 3}
    for flag, paid in {"": 1, **flags}.items():
        flag += f" --env-id {toy(name, 'Counting')}" + " --replay-start 10" * (name in ACER)
        with monkeypatch.context() as patch:
            calls = record(name, settings(name, f"--total-timesteps 30 {flag}"), patch)
        rewards = torch.cat([call.segment.rewards for call in calls.learned])
        torch.testing.assert_close(rewards.unique(), torch.tensor([0.0, paid]))
        returns = [message[3] for message in reports(calls, "episode")]
        rewards = torch.cat([call.segment.rewards for call in calls.acted])
        factor = 1 if is_continuous(name) else 3 / paid  # what is kept in control is unscaled
        assert sum(returns) == factor * float(rewards.sum())


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("normalised", [True, False])
def test_observations_are_normalised_once_for_acting_and_once_for_learning(
    name, normalised, monkeypatch
):
    """What is stored and counted is raw; the statistics begin with mean 4 and deviation 2."""
    flag = "--normalize-obs" if normalised else "--no-normalize-obs"
    seen = torch.tensor([[2.0] * 3, [6.0] * 3], dtype=torch.float64)
    args = settings(name, f"--total-timesteps 150 {flag} --env-id {toy(name, 'Counting')}")
    calls = record(name, args, monkeypatch, seen=seen)
    raw = [call.segment.observations for call in calls.acted]
    stored = {call.segment.actions[0, 0].item(): call.segment.observations for call in calls.acted}
    for before, after, call in zip(raw[:-1], raw[1:], calls.acted[:-1], strict=True):
        assert call.over or torch.equal(before[-1], after[0])
    for call in calls.learned:
        normalizer = calls.acted[call.after - 1].normalizer
        wanted = normalizer(stored[call.segment.actions[0, 0].item()])
        assert torch.equal(call.segment.observations, wanted)
        assert wanted.dtype == torch.float32
    first = calls.acted[0].normalizer
    assert first.mean.tolist() == [4.0 * normalised] * 3
    assert first.std.tolist() == [2.0 if normalised else 1.0] * 3
    counted = torch.cat([seen, *(x[:-1] for x in raw)])
    assert len(counted) == 152
    squares = counted.var(0, correction=0) * 152
    wanted = torch.stack([torch.full((3,), 152.0).double(), counted.mean(0), squares])
    torch.testing.assert_close(calls.shared.observed.total(), wanted)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_long_gradient_is_cut_to_the_flags_length(name, monkeypatch):
    """With plain gradient descent and a step size of 1 the weights move by the gradient's norm."""
    flags = "--total-timesteps 30 --no-anneal-lr --max-grad-norm 1e-3"
    args = settings(name, flags + " --replay-start 10" * (name in ACER))
    calls = record(name, args, monkeypatch, optimizer=lambda given: torch.optim.SGD(given, 1.0))
    assert max(call.norm for call in calls.learned) > 0.01
    for call in calls.learned:
        assert call.moved == pytest.approx(min(call.norm, 1e-3), rel=0.05)


@pytest.mark.parametrize("name", ATARI)
def test_a_lost_life_is_an_end_for_the_learner_and_none_for_the_game(name, monkeypatch):
    """Lives loses one at every fourth step, and ends after eleven."""
    args = settings(name, "--total-timesteps 22 --num-steps 6 --env-id toys:Lives-v0")
    calls = record(name, args, monkeypatch)
    lengths = [len(call.segment.rewards) for call in calls.acted]
    assert lengths == [4, 4, 3, 4, 4, 3]
    assert all(call.segment.terminated for call in calls.acted)
    assert [call.over for call in calls.acted] == [False, False, True] * 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_environment_is_seeded_once_so_that_its_games_differ(name, monkeypatch, tmp_path):
    """Evaluation plays one step to try the environment, and begins again with the same seed."""
    seeds, reset = [], toys.DelayedCue.reset

    def recording_reset(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    args, played = settings(name, "--total-timesteps 70"), evaluation(name, tmp_path, "--seed 5")
    shared = make_shared(name, args)
    args.run_dir = str(tmp_path)
    monkeypatch.setattr(toys.DelayedCue, "reset", recording_reset)
    module(name).worker(0, args, shared, SimpleNamespace(send=lambda message: None))
    assert len(seeds) == 11
    assert seeds[0] is not None
    assert set(seeds[1:]) == {None}
    seeds.clear()
    module(name).evaluate(played)
    assert seeds[0] == seeds[1] is not None
    assert seeds[2:] == [None] * 10


def evaluation(name: str, tmp_path, flags: str):
    """Write weights to evaluate, and return the settings for it."""
    path = tmp_path / "weights.pt"
    if not path.exists():
        torch.save(untrained(name), path)
    argv = f"--evaluate {path} --env-id {toy(name)} {flags}"
    return module(name).parse_args(argv.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_evaluation_and_workers_have_streams_of_their_own(name, monkeypatch, tmp_path):
    """Games, actions and, in ACER, draws from the replay: one stream each, for every seed.

    A run that goes on has others than before.
    """
    script, words, draws = module(name), [], []
    manual_seed = torch.Generator.manual_seed

    def recording_make_env(env_id, seed, **options):
        words.append(seed)
        return env

    class Generator:
        def manual_seed(self, seed):
            words.append(seed)
            return manual_seed(torch._C.Generator(), seed)

    def recording_default_rng(seeds):
        draws.append(tuple(np.random.PCG64(seeds).state["state"].values()))

    args = settings(name, "--num-workers 2")
    shared, env = make_shared(name, args), script.make_env(args.env_id, 0)
    played = {seed: evaluation(name, tmp_path, f"--seed {seed}") for seed in (0, 1, 2)}
    monkeypatch.setattr(script, "make_env", recording_make_env)
    monkeypatch.setattr(script, "Shared", lambda *given: shared)
    monkeypatch.setattr(script.torch, "Generator", Generator)
    monkeypatch.setattr(script.np.random, "default_rng", recording_default_rng)
    monkeypatch.setattr(script.Actor, "act", stop)
    for seed in (0, 1, 2):
        with pytest.raises(InterruptedError):
            script.evaluate(played[seed])
        args.seed = seed
        for rank, shared.start in ((0, 0), (1, 0), (0, 1000), (1, 1000)):
            with pytest.raises(InterruptedError):
                script.worker(rank, args, shared, None)
    assert len(set(words)) == len(words) == 3 * (2 + 2 * 4)
    assert len(set(draws)) == len(draws) == (12 if name in ACER else 0)


@pytest.mark.parametrize("name", ACER)
def test_the_replay_is_divided_between_the_workers(name, monkeypatch):
    script, capacities = module(name), []

    def recording(capacity, *sizes):
        capacities.append(capacity)
        raise InterruptedError

    args = settings(name, "--num-workers 3 --replay-size 1000")
    shared = make_shared(name, args)
    monkeypatch.setattr(script, "ReplayBuffer", recording)
    with pytest.raises(InterruptedError):
        script.worker(2, args, shared, None)
    assert capacities == [333]
