"""The replay buffer against a record of everything that was ever shown to it."""

import gc
import os

import numpy as np
import pytest
import torch

from acer_atari import ReplayBuffer, Segment, make_env

NUM_ACTIONS = 3


class Record:
    """Games made of numbered frames, cut into segments, and what every stack must be."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.frame_number = 0
        self.stacks = {}  # number of the newest frame: numbers of the stack's frames
        self.steps = {}  # number of the frame acted on: (action, reward, mu)

    def new_frame(self, history: list[int]) -> list[int]:
        """Number a new frame and return its stack: a game's first frame stands for those before."""
        self.frame_number += 1
        stack = ([*history, self.frame_number] if history else [self.frame_number] * 4)[-4:]
        self.stacks[self.frame_number] = stack
        return stack

    def game(self, lengths: list[int], ends: list[bool]) -> list[tuple[Segment, bool]]:
        """Return a game's segments; a new game begins with the first one."""
        stack, segments = self.new_frame([]), []
        for number, (length, terminated) in enumerate(zip(lengths, ends, strict=True)):
            stacks, actions, rewards, mus = [stack], [], [], []
            for _ in range(length):
                action, reward = int(self.rng.integers(NUM_ACTIONS)), float(self.rng.normal())
                mu = self.rng.dirichlet(np.ones(NUM_ACTIONS)).astype(np.float32)
                self.steps[stack[-1]] = action, reward, mu
                stack = self.new_frame(stack)
                stacks.append(stack)
                actions.append(action)
                rewards.append(reward)
                mus.append(mu)
            segment = Segment(
                torch.from_numpy(np.stack([[draw(n) for n in numbers] for numbers in stacks])),
                torch.tensor(actions),
                torch.tensor(rewards, dtype=torch.float32),
                torch.from_numpy(np.stack(mus)),
                terminated,
            )
            segments.append((segment, number == 0))
        return segments

    def games(self, count: int, longest: int) -> list[tuple[Segment, bool]]:
        """Return segments of many games; each game ends by termination or by a time limit."""
        segments = []
        for _ in range(count):
            pieces = int(self.rng.integers(1, 6))
            lengths = self.rng.integers(1, longest + 1, pieces).tolist()
            segments += self.game(lengths, self.rng.choice([True, False], pieces).tolist())
        return segments


def draw(number: int) -> np.ndarray:
    """Draw a frame's number into its pixels."""
    frame = np.full((84, 84), number % 251, np.uint8)
    frame[0, :4] = np.frombuffer(np.int32(number).tobytes(), np.uint8)
    return frame


def numbers(observations: torch.Tensor) -> list[list[int]]:
    """Read the numbers of the frames in stacks [N, 4, 84, 84]."""
    corners = np.ascontiguousarray(observations[:, :, 0, :4].numpy())
    return corners.view(np.int32)[..., 0].tolist()


def check(record: Record, segment: Segment) -> None:
    """Compare a drawn segment with the record, frame by frame and step by step."""
    stacks = numbers(segment.observations)
    newest = [stack[-1] for stack in stacks]
    assert newest == list(range(newest[0], newest[0] + len(newest)))
    assert stacks == [record.stacks[number] for number in newest]
    pixels = segment.observations[:, :, 1:].amin((2, 3))
    assert torch.equal(pixels, segment.observations[:, :, 1:].amax((2, 3)))
    assert pixels.tolist() == [[number % 251 for number in stack] for stack in stacks]
    for t, number in enumerate(newest[:-1]):
        action, reward, mu = record.steps[number]
        assert int(segment.actions[t]) == action
        assert float(segment.rewards[t]) == pytest.approx(reward)
        assert np.array_equal(segment.mu[t].numpy(), mu)


@pytest.mark.parametrize("capacity", [24, 60, 61, 97])
def test_drawn_segments_are_what_was_stored_also_after_many_rounds(capacity):
    """Capacities that are no multiple of anything put the ring's seam everywhere."""
    record, replay = Record(capacity), ReplayBuffer(capacity, NUM_ACTIONS)
    rng = np.random.default_rng(0)
    ends = {}
    for segment, new_game in record.games(count=80, longest=20):
        replay.add(segment, new_game)
        ends[numbers(segment.observations)[-1][-1]] = segment.terminated
        for _ in range(4):
            drawn = replay.sample(rng)
            check(record, drawn)
            assert drawn.terminated == ends[numbers(drawn.observations)[-1][-1]]
        assert len(replay) <= capacity


def test_a_stack_never_reaches_into_the_game_before():
    record, replay = Record(), ReplayBuffer(100, NUM_ACTIONS)
    first = record.game([7], [False])  # cut by a time limit: its last observation is kept
    second = record.game([2, 5], [True, False])  # a life lost after two steps: the stack goes on
    for segment, new_game in first + second:
        replay.add(segment, new_game)
    drawn = {}
    rng = np.random.default_rng(0)
    for _ in range(100):
        segment = replay.sample(rng)
        drawn[numbers(segment.observations)[0][-1]] = numbers(segment.observations)
    assert set(drawn) == {1, 9, 11}
    assert drawn[1][-1] == [5, 6, 7, 8]
    assert drawn[9] == [[9, 9, 9, 9], [9, 9, 9, 10], [9, 9, 10, 11]]
    assert drawn[11][0] == [9, 9, 10, 11]


def test_segments_are_drawn_uniformly_whatever_their_length():
    record, replay = Record(), ReplayBuffer(100, NUM_ACTIONS)
    for segment, new_game in record.game([1, 20, 5, 20], [False] * 4):
        replay.add(segment, new_game)
    rng, draws = np.random.default_rng(0), 4000
    lengths = [len(replay.sample(rng).rewards) for _ in range(draws)]
    counts = np.array([lengths.count(1), lengths.count(5), lengths.count(20) / 2])
    sd = np.sqrt(draws * 0.25 * 0.75)
    assert np.all(abs(counts - draws / 4) < 4 * sd)


def test_the_newest_steps_are_kept_and_the_oldest_go_first():
    record, replay = Record(), ReplayBuffer(64, NUM_ACTIONS)
    for segment, new_game in record.game([10] * 30, [False] * 30):
        replay.add(segment, new_game)
    rng = np.random.default_rng(0)
    firsts = {numbers(replay.sample(rng).observations)[0][-1] for _ in range(500)}
    # 64 frames hold steps 237 to 300: five whole segments, and three frames before the oldest.
    assert firsts == {251, 261, 271, 281, 291, 241}


def test_a_drawn_segment_is_a_copy():
    """Learning from it goes on while the worker stores more."""
    record, replay = Record(), ReplayBuffer(40, NUM_ACTIONS)
    segments = record.game([10] * 8, [False] * 8)
    replay.add(*segments[0])
    drawn = replay.sample(np.random.default_rng(0))
    before = [tensor.clone() for tensor in drawn[:4]]
    for segment in segments[1:]:
        replay.add(*segment)
    assert all(torch.equal(a, b) for a, b in zip(before, drawn[:4], strict=True))


def test_the_smallest_capacity_that_the_command_line_admits_holds_a_segment():
    record, replay = Record(), ReplayBuffer(24, NUM_ACTIONS)
    for segment, new_game in record.game([20] * 10, [False] * 10):
        replay.add(segment, new_game)
        check(record, replay.sample(np.random.default_rng(0)))


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's memory figures")
@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"])
def test_a_stored_step_takes_at_most_8600_bytes_of_memory(env_id):
    """Measured on real games by the operating system, Breakout with its short segments."""
    env = make_env(env_id, seed=0)
    num_actions, rng = int(env.action_space.n), np.random.default_rng(0)
    replay = ReplayBuffer(20_000, num_actions)
    gc.collect()
    before, steps = resident_bytes(), 0
    observation, new_game, over = env.reset()[0], True, False
    while steps < 4_000:
        observations, actions, rewards, ended = [observation], [], [], False
        while len(actions) < 20 and not ended:
            actions.append(int(rng.integers(num_actions)))
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            over = terminated or truncated
            ended = over or info["life_lost"]
        segment = Segment(
            torch.from_numpy(np.stack(observations)),
            torch.tensor(actions),
            torch.tensor(rewards, dtype=torch.float32),
            torch.full((len(actions), num_actions), 1 / num_actions),
            ended,
        )
        replay.add(segment, new_game)
        steps += len(actions)
        new_game = over
        if over:
            observation, _ = env.reset()
    gc.collect()
    used = resident_bytes() - before
    assert steps * 7_056 < used < steps * 8_600
    assert ReplayBuffer.bytes_per_step(num_actions) <= 8_600
    assert len(replay) / steps < 8_600 / ReplayBuffer.bytes_per_step(num_actions)
