"""What a worker does from step to step, run in this process with everything it calls recorded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from harness import ACER, SCRIPTS, TINY, is_continuous, module, sizes, toy, untrained

CONTINUOUS = [name for name in SCRIPTS if is_continuous(name)]
ATARI = [name for name in SCRIPTS if not is_continuous(name)]


def settings(name: str, flags: str = ""):
    """Return the settings of one worker's small run; later flags win."""
    return module(name).parse_args(f"{TINY[name]} --num-workers 1 {flags}".split())


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def record(name: str, args, monkeypatch, *, rank=0, taken=(0,), start=0, optimizer=None, seen=None):
    """Run a worker; return its calls as lists of what there was to see, in their order.

    Args:
        taken: steps that the workers have taken already.
        start: steps of the run before it was resumed.
        optimizer: in place of the run's own, a function of the parameters.
        seen: observations that the statistics have already, [N, D].
    """
    script = module(name)
    args.num_workers = len(taken)
    shared = script.make_shared(args, *sizes(name), None)
    shared.steps_taken.copy_(torch.tensor(taken))
    shared = shared._replace(start=start)
    if optimizer:
        shared = shared._replace(optimizer=optimizer(shared.model.parameters()))
    if seen is not None:
        shared.observed.add(rank, seen)
    calls = SimpleNamespace(collected=[], learned=[], reports=[], summarised=[], shared=shared)
    collect_segment, learn, summarise = script.collect_segment, script.learn, script.summarise

    def recording_collect_segment(env, model, *arguments):
        generator = torch.Generator()
        generator.set_state(arguments[-1].get_state())
        current = torch.equal(weights(model), weights(shared.model))
        result = collect_segment(env, model, *arguments)
        # The weights are those that acted: nothing is learned in between.
        calls.collected.append(
            SimpleNamespace(
                segment=result[0],
                over=result[-1] is not None,
                model=model,
                arguments=arguments,
                generator=generator,
                current=current,
            )
        )
        check_acting(name, args, calls.collected[-1])
        return result

    def recording_learn(segment, model, *arguments):
        before = weights(shared.model)
        current = torch.equal(weights(model), before)
        statistics = learn(segment, model, *arguments)
        moved = float((weights(shared.model) - before).norm())
        calls.learned.append(SimpleNamespace(segment=segment, current=current, moved=moved))
        calls.learned[-1].norm = float(statistics["grad_norm"])
        calls.learned[-1].after = len(calls.collected)
        return statistics

    def recording_summarise(updates):
        calls.summarised.append(len(updates))
        return summarise(updates)

    class Connection:
        def send(self, message):
            calls.reports.append((message, shared.steps()))

    monkeypatch.setattr(script, "collect_segment", recording_collect_segment)
    monkeypatch.setattr(script, "learn", recording_learn)
    monkeypatch.setattr(script, "summarise", recording_summarise)
    script.worker(rank, args, shared, Connection())
    return calls


def check_acting(name: str, args, call) -> None:
    """Check that what is stored of the policy is what acted, and the actions what it drew."""
    segment, model = call.segment, call.model
    with torch.no_grad():
        if name == "acer_atari":
            torch.testing.assert_close(segment.mu, model(segment.observations[:-1])[0])
        if is_continuous(name):
            normalizer, observation, num_steps = call.arguments[:3]
            assert torch.equal(segment.observations[0], torch.from_numpy(observation))
            acted_on = normalizer(segment.observations[:-1])
            if name in ACER:
                mean, std = model.policy(acted_on), args.policy_std
                torch.testing.assert_close(segment.mu_mean, mean)
            else:
                mean, std = model.policy(acted_on)
            noise = torch.randn(num_steps, 2, generator=call.generator)[: len(mean)]
            torch.testing.assert_close(segment.actions, mean + std * noise)


@pytest.fixture(scope="module", params=SCRIPTS)
def small_run(request):
    """The second of two workers in a resumed run: 1,000 steps before, 500 of the other, 105 here.

    Games of seven steps, segments of five and two; a report every 35 steps, replays after 50.
    """
    name = request.param
    flags = "--replay-start 550" * (name in ACER)
    args = settings(name, f"--total-timesteps 1605 {flags}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module(name), "STATISTICS_EVERY", 35)
        return name, record(name, args, patch, rank=1, taken=(500, 0), start=1000)


def reports(calls, kind: str) -> list[tuple]:
    return [message for message, _ in calls.reports if message[0] == kind]


def test_every_segment_and_every_replay_begins_with_the_shared_weights(small_run):
    _, calls = small_run
    assert len(calls.learned) > 15
    assert all(call.current for call in [*calls.collected, *calls.learned])


def test_reports_carry_the_steps_of_the_whole_run(small_run):
    """They are what curves are drawn over."""
    name, calls = small_run
    episodes, statistics = reports(calls, "episode"), reports(calls, "statistics")
    assert [message[1:3] for message in episodes] == [(n, 1) for n in range(1507, 1606, 7)]
    assert {message[4] for message in episodes} == {7}
    assert [message[1] for message in statistics] == [1535, 1570, 1605]
    assert all(message[1] == now for message, now in calls.reports)
    if name in ACER:  # a game takes nine of the replay's 300 positions in control, eight on Atari
        assert [message[2] for message in statistics] == [1, 1, 1]
        games = np.array([5, 10, 15])
        fills = games * (9 if is_continuous(name) else 8) / 300
        np.testing.assert_allclose([message[3] for message in statistics], fills)
    if name == "acer_continuous":  # it learns from its replay alone, which is not used at first
        assert statistics[0][4] == {}
    assert statistics[2][-1]["grad_norm"] > 0


def test_every_update_is_in_one_report(small_run):
    _, calls = small_run
    assert sum(calls.summarised) == len(calls.learned)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_learner_sees_rewards_as_the_flags_say(name, monkeypatch):
    """Counting pays 0 or 3: the sign of it, a tenth of it, or as it is."""
    flags = {"--reward-scale 1": 3, "": 0.3} if is_continuous(name) else {"--no-reward-clip": 3}
    for flag, paid in {"": 1, **flags}.items():
        env_id = toy(name, "Counting")
        flag += " --replay-start 10" * (name in ACER)
        args = settings(name, f"--total-timesteps 30 --env-id {env_id} {flag}")
        with monkeypatch.context() as patch:
            calls = record(name, args, patch)
        rewards = torch.cat([call.segment.rewards for call in calls.learned])
        torch.testing.assert_close(rewards.unique(), torch.tensor([0.0, paid]))


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("normalised", [True, False])
def test_observations_are_normalised_once_for_acting_and_once_for_learning(
    name, normalised, monkeypatch
):
    """What is stored and counted is raw; the statistics begin with mean 4 and deviation 2."""
    flag = "--normalize-obs" if normalised else "--no-normalize-obs"
    seen = torch.tensor([[2.0] * 3, [6.0] * 3])
    args = settings(name, f"--total-timesteps 150 {flag} --env-id {toy(name, 'Counting')}")
    calls = record(name, args, monkeypatch, seen=seen)
    raw, stored = [call.segment.observations for call in calls.collected], {}
    for call in calls.collected:
        stored[call.segment.actions.flatten()[0].item()] = call.segment.observations
    for before, after, call in zip(raw[:-1], raw[1:], calls.collected[:-1], strict=True):
        assert call.over or torch.equal(before[-1], after[0])
    for call in calls.learned:
        normalizer = calls.collected[call.after - 1].arguments[0]
        wanted = normalizer(stored[call.segment.actions.flatten()[0].item()])
        torch.testing.assert_close(call.segment.observations, wanted)
    first = calls.collected[0].arguments[0]
    torch.testing.assert_close(first.mean, torch.full((3,), 4.0 * normalised))
    torch.testing.assert_close(first.std, torch.full((3,), 2.0 if normalised else 1.0))
    counted = torch.cat([seen, *(x[:-1] for x in raw)]).double()
    sums = torch.cat([counted.sum(0), counted.square().sum(0)])
    torch.testing.assert_close(calls.shared.observed.sums[0, 1:], sums)
    assert calls.shared.observed.sums[0, 0] == 152


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_long_gradient_is_cut_to_the_flags_length(name, monkeypatch):
    """With plain gradient descent and a step size of 1 the weights move by the gradient's norm."""
    flags = "--total-timesteps 30 --no-anneal-lr --max-grad-norm 1e-3"
    args = settings(name, flags + " --replay-start 10" * (name in ACER))
    calls = record(
        name, args, monkeypatch, optimizer=lambda parameters: torch.optim.SGD(parameters, 1.0)
    )
    assert max(call.norm for call in calls.learned) > 0.01
    for call in calls.learned:
        assert call.moved == pytest.approx(min(call.norm, 1e-3), rel=0.05)


@pytest.mark.parametrize("name", ATARI)
def test_a_lost_life_is_an_end_for_the_learner_and_none_for_the_game(name, monkeypatch):
    """Lives loses one at every fourth step, and ends after eleven."""
    args = settings(name, "--total-timesteps 22 --num-steps 6 --env-id toys:Lives-v0")
    calls = record(name, args, monkeypatch)
    lengths = [len(call.segment.rewards) for call in calls.collected]
    assert lengths == [4, 4, 3, 4, 4, 3]
    assert all(call.segment.terminated for call in calls.collected)
    assert [call.over for call in calls.collected] == [False, False, True] * 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_environment_is_seeded_once_so_that_its_games_differ(name, monkeypatch, tmp_path):
    seeds, reset = [], toys.DelayedCue.reset

    def recording_reset(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(toys.DelayedCue, "reset", recording_reset)
    record(name, settings(name, "--total-timesteps 70"), monkeypatch)
    assert len(seeds) > 10
    assert seeds[0] is not None
    assert set(seeds[1:]) == {None}
    seeds.clear()
    module(name).evaluate(evaluation(name, tmp_path, "--seed 5"))
    assert seeds[0] is not None
    assert set(seeds[1:]) == {None}
    assert len(seeds) == 11


def evaluation(name: str, tmp_path, flags: str):
    """Write weights to evaluate, and return the settings for it."""
    torch.save(untrained(name), tmp_path / "weights.pt")
    argv = ["--evaluate", str(tmp_path / "weights.pt"), *flags.split()]
    return module(name).parse_args(argv)


@pytest.mark.parametrize("name", SCRIPTS)
def test_evaluation_and_workers_have_streams_of_their_own(name, monkeypatch, tmp_path):
    """Games, actions and, in ACER, draws from the replay: one stream each, for every seed."""
    script, words, draws = module(name), [], []
    make_env, manual_seed = script.make_env, torch.Generator.manual_seed

    def recording_make_env(env_id, seed, **kwargs):
        words.append(seed)
        return make_env(env_id, seed, **kwargs)

    class Generator:
        def manual_seed(self, seed):
            words.append(seed)
            return manual_seed(torch._C.Generator(), seed)

    def recording_default_rng(seeds):
        draws.append(tuple(np.random.PCG64(seeds).state["state"].values()))

    def stop(*arguments):
        raise InterruptedError

    monkeypatch.setattr(script, "make_env", recording_make_env)
    monkeypatch.setattr(script.torch, "Generator", Generator)
    monkeypatch.setattr(script.np.random, "default_rng", recording_default_rng)
    monkeypatch.setattr(script, "collect_segment", stop)
    args = settings(name, "--num-workers 2")
    shared = script.make_shared(args, *sizes(name), None)
    for seed in (0, 1, 2):
        script.evaluate(evaluation(name, tmp_path, f"--seed {seed} --eval-episodes 1"))
        for args.seed, rank in ((seed, 0), (seed, 1)):
            with pytest.raises(InterruptedError):
                script.worker(rank, args, shared, None)
    assert len(set(words)) == 3 * (2 + 2 * 2)
    assert len(set(draws)) == (6 if name in ACER else 0)


@pytest.mark.parametrize("name", ACER)
def test_the_replay_is_divided_between_the_workers(name, monkeypatch):
    script, capacities = module(name), []

    def stop(capacity, *sizes):
        capacities.append(capacity)
        raise InterruptedError

    monkeypatch.setattr(script, "ReplayBuffer", stop)
    args = settings(name, "--num-workers 3 --replay-size 1000")
    with pytest.raises(InterruptedError):
        script.worker(2, args, script.make_shared(args, *sizes(name), None), None)
    assert capacities == [333]
