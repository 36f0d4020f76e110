"""Measure what ACER's trust region changes on its way from the probabilities to the logits.

    python results/trust_region.py runs/NAME [STEPS]

Plays with a run's checkpoint on Atari (it needs the average network, which `weights/` leaves out)
and compares, state by state, the policy's gradient in the logits with and without the projection.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import acer_atari as acer


def in_logits(gradient: Tensor, pi: Tensor) -> Tensor:
    """Carry a gradient in the probabilities through the softmax."""
    return pi * (gradient - (pi * gradient).sum(1, keepdim=True))


@torch.no_grad()
def main(run: str, steps: int = 3_000) -> None:
    """Print how often the projection is active, and how much of it reaches the logits."""
    torch.set_num_threads(1)
    checkpoint = acer.load_checkpoint(run, "average_model")
    args = acer.parse_args(["--evaluate", run])
    env = acer.make_env(args.env_id, 5, reward_clip=args.reward_clip)
    model, average_model = (acer.ActorCritic(int(env.action_space.n)) for _ in range(2))
    model.load_state_dict(checkpoint["model"])
    average_model.load_state_dict(checkpoint["average_model"])
    generator = torch.Generator().manual_seed(0)
    observation, _ = env.reset()
    rows = []
    while sum(map(len, rows)) < steps:
        segment, episode = acer.collect_segment(env, model, observation, args.num_steps, generator)
        pi, q = model(segment.observations)
        values = (pi * q).sum(1)
        bootstrap_value = 0.0 if segment.terminated else values[-1]
        pi, q, values = pi[:-1], q[:-1], values[:-1]
        q_taken = q.gather(1, segment.actions[:, None]).squeeze(1)
        q_ret = acer.retrace(
            segment.rewards, q_taken, values, torch.ones(len(pi)), bootstrap_value, args.gamma
        )
        g = acer.categorical_policy_gradient(
            pi, segment.mu, segment.actions, q, values, q_ret, args.rho_clip, args.ent_coef
        )
        k = -average_model(segment.observations[:-1])[0] / pi.clamp_min(acer.MIN_PROBABILITY)
        z = acer.trust_region_step(g, k, args.trust_region_delta)
        whole, change = in_logits(g, pi).norm(dim=1), in_logits(z - g, pi).norm(dim=1)
        rows.append(torch.stack([(z != g).any(1), q_ret < values, whole, change], 1).numpy())
        observation = segment.observations[-1].contiguous().numpy()
        if episode:
            observation, _ = env.reset()
    active, worse, whole, change = np.concatenate(rows).T
    print(
        f"step {checkpoint['steps']:,}, {len(active)} states: active in {active.mean():.1%}, "
        f"{worse[active > 0].mean():.0%} of them after an action that did worse than V; "
        f"in the logits a change of {change.sum() / whole.sum():.1%} of the gradient"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
