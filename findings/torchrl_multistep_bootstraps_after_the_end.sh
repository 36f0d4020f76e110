#!/usr/bin/env bash
# TorchRL's multi-step transforms bootstrap from the last screen of a lost game.
#
# Versions: torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0, numpy 2.4.6, Python 3.11.
# The guess: three-step targets of a game of four steps, reward 1 each, gamma 0.5, with a value of 10
#   everywhere, are 3, 1.75, 1.5 and 1 if the game is lost after the fourth, since a lost game has no
#   value, and 3, 3, 4 and 6 if a time limit ends it.
# What happens: MultiStep, and MultiStepTransform in a replay buffer, add up the right rewards and put
#   the right observation into "next", but leave its "terminated" as it was one step after the start.
#   TD0Estimator, which DQNLoss and others use, therefore adds the value of the last observation to
#   all starts but the very last one: 3, 3, 4 and 1.
# Why it matters: of n starts that see the end of a lost game, n - 1 learn that it went on, in each
#   game. The keys "gamma" and "steps_to_next_obs" are right, "nonterminal" is true there as well, and
#   nothing is raised.
set -euo pipefail

expected='steps by hand, lost:           3.00 1.75 1.50 1.00
MultiStep, lost:               3.00 3.00 4.00 1.00
MultiStepTransform, lost:      3.00 3.00 4.00 1.00
DQNLoss, lost:                 3.00 3.00 4.00 1.00
steps by hand, time limit:     3.00 3.00 4.00 6.00
MultiStep, time limit:         3.00 3.00 4.00 6.00
MultiStepTransform, time limit: 3.00 3.00 4.00 6.00
DQNLoss, time limit:           3.00 3.00 4.00 6.00'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - 2>errors.txt <<'PY'
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.envs.transforms import MultiStepTransform
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss
from torchrl.objectives.value import TD0Estimator

GAMMA, STEPS, VALUE = 0.5, 3, 10.0


class Constant(torch.nn.Module):
    """Give the same values whatever it sees, 10 first."""

    def __init__(self, outputs):
        super().__init__()
        values = torch.zeros(outputs)
        values[0] = VALUE
        self.values = torch.nn.Parameter(values)

    def forward(self, observation):
        return self.values.expand(*observation.shape[:-1], -1)


def game(lost):
    """Make a game of four steps, reward 1 each, that is lost or runs out of time."""
    end, no = torch.tensor([[False], [False], [False], [True]]), torch.zeros(4, 1, dtype=torch.bool)
    time = torch.arange(4.0)[:, None]
    ends = {"done": end, "terminated": end if lost else no, "truncated": no if lost else end}
    following = {"observation": time + 1, "reward": torch.ones(4, 1), **ends}
    now = {"observation": time, "done": no, "terminated": no, "truncated": no}
    action = torch.tensor([[1, 0]] * 4)
    return TensorDict({**now, "action": action, "next": TensorDict(following, [4])}, [4])


def by_hand(lost):
    """Add up at most three rewards, and what the last observation is worth."""
    targets = []
    for start in range(4):
        stop = min(start + STEPS, 4)
        worth = 0.0 if lost and stop == 4 else VALUE
        rewards = sum(GAMMA**k for k in range(stop - start))
        targets.append(rewards + GAMMA ** (stop - start) * worth)
    return torch.tensor(targets)


def show(name, targets):
    print(f"{name:<30}", *(f"{x:.2f}" for x in targets.flatten().tolist()))


value = TensorDictModule(Constant(1), ["observation"], ["state_value"])
estimator = TD0Estimator(gamma=GAMMA, value_network=value)
actor = QValueActor(Constant(2), in_keys=["observation"], action_space="one-hot")
for lost, name in ((True, "lost"), (False, "time limit")):
    show(f"steps by hand, {name}:", by_hand(lost))
    steps = MultiStep(gamma=GAMMA, n_steps=STEPS)(game(lost)[None])[0]
    show(f"MultiStep, {name}:", estimator.value_estimate(steps.clone()))
    transform = MultiStepTransform(n_steps=STEPS, gamma=GAMMA)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(100), transform=transform)
    replay.extend(game(lost))
    replay.extend(game(lost))  # the last steps wait for what follows
    show(f"MultiStepTransform, {name}:", estimator.value_estimate(replay[:].clone())[:4])
    loss = DQNLoss(actor, action_space="one-hot", loss_function="l1", delay_value=True)
    loss.make_value_estimator(gamma=GAMMA)
    q = [loss(steps[t : t + 1].clone())["loss"].item() for t in range(4)]  # |target - 10|
    show(f"DQNLoss, {name}:", VALUE - torch.tensor(q))
PY
) || { cat errors.txt >&2; exit 1; }
seen=$(grep -v '\[torchrl\]' <<<"$seen")  # its own log, on standard output

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
