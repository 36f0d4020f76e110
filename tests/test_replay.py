"""The replay: what is drawn is what was stored, bit for bit, also from a file of another run."""

import sys
from itertools import chain, count

import numpy as np
import pytest
import torch
from harness import ACER, make_shared, module, settings

import acer_atari
import acer_continuous

SIZES = {"acer_atari": (2,), "acer_continuous": (3, 2)}  # of all segments made up here


def floats(rng, *shape) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def made_up(name: str, length: int, rng: np.random.Generator):
    """Make a segment of random numbers, and on Atari of random pixels."""
    terminated = bool(rng.integers(2))
    if name == "acer_atari":
        frames = rng.integers(0, 256, (length + 4, 84, 84), np.uint8)
        stacks = acer_atari.as_batch([frames[t : t + 4] for t in range(length + 1)])
        actions = torch.from_numpy(rng.integers(2, size=length))
        numbers = floats(rng, length), floats(rng, length, 2).softmax(1)
        return acer_atari.Segment(stacks, actions, *numbers, terminated)
    observations = torch.from_numpy(rng.normal(size=(length + 1, 3)))
    numbers = floats(rng, length, 2), floats(rng, length), floats(rng, length, 2)
    return acer_continuous.Segment(observations, *numbers, terminated)


def filled(name: str, lengths, seed: int = 0, capacity: int = 10**6):
    """Return a replay of made-up segments, and these."""
    rng, replay, segments = np.random.default_rng(seed), None, []
    replay = module(name).ReplayBuffer(capacity, *SIZES[name])
    for length in lengths:
        segments.append(made_up(name, length, rng))
        replay.add(length, module(name).pack(segments[-1]))
    return replay, segments


def bits(segment) -> list:
    """Return all there is to a segment, as it lies in memory."""
    tensors = [(x.shape, x.stride(), x.dtype, x.numpy().tobytes()) for x in segment[:4]]
    return [*tensors, segment.terminated, type(segment)]


def contents(replay) -> list:
    return [bits(module_of(replay).unpack(packed, *replay.sizes)) for _, packed in replay.segments]


def module_of(replay):
    return sys.modules[type(replay).__module__]


@pytest.fixture(params=ACER)
def name(request):
    return request.param


# In memory ========================================================================================


@pytest.mark.parametrize("length", [*range(1, 22), 300])
def test_a_drawn_segment_is_the_stored_one_bit_by_bit(name, length):
    replay, (segment,) = filled(name, [length], seed=length)
    assert bits(replay.sample(np.random.default_rng(0))) == bits(segment)


def test_numbers_of_every_kind_survive(name):
    """Also those that compare unequal to themselves, and the two zeros."""
    _, (segment,) = filled(name, [6])
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 3.4e38])
    segment = segment._replace(rewards=odd)
    script = module(name)
    assert bits(script.unpack(script.pack(segment), *SIZES[name])) == bits(segment)


@pytest.mark.parametrize("num_actions", [1, 2, 18])
def test_policies_of_any_number_of_actions_survive(num_actions):
    segment = made_up("acer_atari", 5, np.random.default_rng(0))
    mu = floats(np.random.default_rng(0), 5, num_actions)
    segment = segment._replace(mu=mu, actions=segment.actions % num_actions)
    assert bits(acer_atari.unpack(acer_atari.pack(segment), num_actions)) == bits(segment)


def play(env_id: str, steps: int):
    """Play at random; return the replay and what was put into it."""
    env = acer_atari.make_env(env_id, 0)
    num_actions = int(env.action_space.n)
    pi = torch.full((1, num_actions), 1 / num_actions)
    generator, stop = torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.bool)
    actor = acer_atari.Actor(None, env, None, lambda x: (pi, None), generator)
    replay, segments = acer_atari.ReplayBuffer(10**6, num_actions), []
    while replay.steps < steps:
        segments.append(actor.act(20, stop)[0])
        replay.add(len(segments[-1].rewards), acer_atari.pack(segments[-1]))
    return replay, segments


def memory(replay) -> int:
    """Add up the bytes of a replay and of every object in it."""
    objects = [replay.segments, *replay.segments, *(x for entry in replay.segments for x in entry)]
    return sum(map(sys.getsizeof, objects))


@pytest.mark.parametrize(
    ("env_id", "most", "steps"),
    [
        ("PongNoFrameskip-v4", 350, 1000),
        ("BreakoutNoFrameskip-v4", 350, 600),  # three games with all their lives
        ("EnduroNoFrameskip-v4", 1000, 300),
    ],
)
def test_real_games_come_back_bit_by_bit_and_are_small(env_id, most, steps):
    replay, segments = play(env_id, steps)
    assert contents(replay) == [bits(segment) for segment in segments]
    lengths = [len(segment.rewards) for segment in segments]
    assert replay.steps == sum(lengths)
    if env_id.startswith("Breakout"):  # lives end within segments, and the next stack goes on
        assert {20} < set(lengths)
        assert sum(segment.terminated for segment in segments) > 5
    assert memory(replay) <= most * replay.steps
    assert 0.9 * memory(replay) < replay.bytes < memory(replay)


def test_the_oldest_segments_are_forgotten_beyond_the_capacity(name):
    """Against the definition: the longest row of latest segments that fits, one at least."""
    rng = np.random.default_rng(0)
    for capacity in (1, 19, 20, 50, 61):
        lengths = [*rng.integers(1, 21, size=60).tolist(), 1, 1, 20, 1]
        replay = module(name).ReplayBuffer(capacity, *SIZES[name])
        for number, length in enumerate(lengths):
            replay.add(length, b"x" * (number + 1))
            first = next(i for i in count() if sum(lengths[i : number + 1]) <= capacity)
            kept = range(min(first, number), number + 1)
            assert [len(packed) - 1 for _, packed in replay.segments] == list(kept)
            assert replay.steps == sum(lengths[i] for i in kept)
            assert replay.bytes == sum(i + 1 for i in kept)


def test_segments_are_drawn_uniformly_whatever_their_length(name):
    """Each one's share within four standard errors, the oldest and the newest, too."""
    lengths, draws = [1, 20, 5, 19], 2000
    replay, _ = filled(name, lengths)
    rng = np.random.default_rng(0)
    drawn = [len(replay.sample(rng).rewards) for _ in range(draws)]
    shares = np.array([drawn.count(length) / draws for length in lengths])
    assert np.all(abs(shares - 1 / 4) < 4 * np.sqrt(3 / 16 / draws))


def test_a_drawn_segment_is_a_copy(name):
    """Learning from it, or from another, changes nothing that is kept."""
    replay, (segment,) = filled(name, [5])
    before = bits(segment)
    drawn = replay.sample(np.random.default_rng(0))
    for tensor in drawn[:4]:
        tensor.zero_()
    assert contents(replay) == [before]


# On disk ==========================================================================================


@pytest.mark.parametrize("num_workers", [1, 2, 3, 20])
def test_saved_segments_are_divided_among_any_number_of_workers(name, num_workers, tmp_path):
    """Two workers leave 5 and 11 segments: each goes to one of the next ones, evenly, in order."""
    kept = []
    for rank, number in enumerate((5, 11)):
        replay, _ = filled(name, range(1, number + 1), seed=rank)
        replay.save(tmp_path / f"replay-{rank}.pt", 7)
        kept.append(contents(replay))
    loaded = []
    for rank in range(num_workers):
        replay = module(name).ReplayBuffer(10**6, *SIZES[name])
        shares = []
        for number in (0, 1):
            before = len(replay.segments)
            replay.load(tmp_path / f"replay-{number}.pt", rank, num_workers)
            shares.append(contents(replay)[before:])
        loaded.append(shares)
        assert replay.steps == sum(steps for steps, _ in replay.segments)
        assert all(x == len(one.actions) for x, one in unpacked(replay))
    for number, segments in enumerate(kept):
        places = [[segments.index(segment) for segment in shares[number]] for shares in loaded]
        assert sorted(chain(*places)) == list(range(len(segments)))
        assert places == [sorted(share) for share in places], "the oldest is forgotten first"
        sizes = list(map(len, places))
        assert max(sizes) - min(sizes) <= 1


def unpacked(replay):
    """Yield the steps noted of each segment, and the segment."""
    for steps, packed in replay.segments:
        yield steps, module_of(replay).unpack(packed, *replay.sizes)


def test_a_smaller_replay_keeps_a_files_latest_segments(name, tmp_path):
    replay, segments = filled(name, [10] * 9)
    replay.save(tmp_path / "replay-0.pt", 7)
    smaller = module(name).ReplayBuffer(30, *SIZES[name])
    smaller.load(tmp_path / "replay-0.pt")
    assert contents(smaller) == [bits(segment) for segment in segments[-3:]]


def test_a_replay_without_segments_can_be_saved_and_loaded(name, tmp_path):
    """As that of a worker which is told to stop before its first step."""
    replay, _ = filled(name, [])
    replay.save(tmp_path / "replay-0.pt", 7)
    if (tmp_path / "replay-0.pt").exists():
        replay.load(tmp_path / "replay-0.pt")
    assert not replay.segments


def test_a_resumed_run_takes_the_files_of_its_own_session_alone(name, tmp_path, capsys):
    args = settings(name)
    shared = make_shared(name, args)
    checkpoint = {"steps": 500, **shared.state(), "replay_since": 300}
    for rank, session in enumerate([shared.session, shared.session + 1, shared.session]):
        replay, _ = filled(name, [5])
        replay.save(tmp_path / f"replay-{rank}.pt", session)
    args.resume = str(tmp_path)
    own = [tmp_path / "replay-0.pt", tmp_path / "replay-2.pt"]
    resumed = make_shared(name, args, checkpoint)
    assert (resumed.replay_files, resumed.start, resumed.replay_since) == (own, 500, 300)
    assert resumed.session != shared.session

    resumed.replay_files = []
    resumed.find_replay(tmp_path / "checkpoint.pt", checkpoint)
    assert resumed.replay_files == own
    assert capsys.readouterr().out == ""

    resumed.replay_files, resumed.replay_since = [], 500
    resumed.find_replay(tmp_path, checkpoint | {"session": shared.session + 2})
    assert (resumed.replay_files, resumed.replay_since) == ([], 500)
    assert "the replay starts empty" in capsys.readouterr().out


def refused(name: str, path, wanted: list) -> bool:
    """Load a damaged file; tell whether it ended with one line. If not, all must be as it was."""
    replay, line = module(name).ReplayBuffer(10**6, *SIZES[name]), ""
    try:
        replay.load(path)
    except SystemExit as ended:
        line = str(ended.code)
    assert "\n" not in line
    assert "damaged" in line or contents(replay) == wanted
    return line != ""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_flipped_byte_or_a_torn_end_is_one_line_or_changes_nothing(name, tmp_path):
    replay, segments = filled(name, [1, 3] if name == "acer_atari" else [5, 20])
    path, wanted = tmp_path / "replay-0.pt", [bits(segment) for segment in segments]
    replay.save(path, 7)
    whole = path.read_bytes()
    rng, ended = np.random.default_rng(0), []
    for place in rng.integers(len(whole), size=300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        ended.append(refused(name, path, wanted))
    assert sum(ended) > 50
    for size in [0, 1, *rng.integers(len(whole), size=20), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert refused(name, path, wanted)


DAMAGE = {
    "no data": lambda good: {"data": None},
    "data of another type": lambda good: {"data": good["data"].float()},
    "data that are bytes": lambda good: {"data": bytes(good["data"].tolist())},
    "sizes of another type": lambda good: {"sizes": good["sizes"].float() + 0.5},
    "sizes that are text": lambda good: {"sizes": "12"},
    "one size too many": lambda good: {"sizes": torch.cat([good["sizes"], torch.tensor([5])])},
    "one size too few": lambda good: {"sizes": good["sizes"][:-1]},
    "a size too large": lambda good: {"sizes": good["sizes"] + torch.tensor([1, 0, 0])},
    "a size too small": lambda good: {"sizes": good["sizes"] - torch.tensor([0, 0, 2])},
    "a size below 0": lambda good: {"sizes": good["sizes"] * torch.tensor([1, 1, -1])},
    "huge sizes": lambda good: {"sizes": good["sizes"] + 2**62},
    "data cut short": lambda good: {"data": good["data"][:-7].clone()},
    "data too long": lambda good: {"data": torch.cat([good["data"], good["data"][:9]])},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line(name, damage, tmp_path):
    replay, segments = filled(name, [2, 5, 3])
    path = tmp_path / "replay-0.pt"
    replay.save(path, 7)
    good = torch.load(path, weights_only=True)
    torch.save(good | DAMAGE[damage](good), path)
    assert refused(name, path, [bits(segment) for segment in segments])


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_taken_from_no_file(name, odd, tmp_path):
    """They would end every run that goes on with them, at a draw that nobody can foresee."""
    replay, (segment,) = filled(name, [5])
    segment.rewards[3] = odd
    replay.add(5, module(name).pack(segment))
    replay.save(tmp_path / "replay-0.pt", 7)
    assert refused(name, tmp_path / "replay-0.pt", [])


@pytest.mark.parametrize("action", [-1, 2, 2**40])
def test_an_action_that_there_is_not_is_refused(action):
    segment = made_up("acer_atari", 5, np.random.default_rng(0))
    segment.actions[2] = action
    with pytest.raises(ValueError, match="action"):
        acer_atari.unpack(acer_atari.pack(segment), 2)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, None, {"session": 7}], ids=str)
def test_a_file_of_something_else_is_one_line(name, content, tmp_path):
    torch.save(content, tmp_path / "replay-0.pt")
    assert refused(name, tmp_path / "replay-0.pt", [])


def test_segments_of_another_network_are_one_line(name, tmp_path):
    replay, _ = filled(name, [2, 5])
    replay.save(tmp_path / "replay-0.pt", 7)
    other = module(name).ReplayBuffer(100, *(size + 1 for size in SIZES[name]))
    with pytest.raises(SystemExit, match="damaged"):
        other.load(tmp_path / "replay-0.pt")
