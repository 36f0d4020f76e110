"""Shared optimizers and weights: against torch.optim, across processes, without accumulation."""

import copy
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from acer_atari import (
    ActorCritic,
    SharedAdam,
    SharedRMSprop,
    apply_gradients,
    copy_weights,
    load_optimizer_state,
    update_average,
)


def network() -> ActorCritic:
    """The real network: its convolutions are 4-D and channels_last, where errors hide."""
    torch.manual_seed(0)
    return ActorCritic(3)


def give_gradients(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        noise = torch.randn(p.numel(), generator=generator).reshape(p.shape)
        p.grad = torch.empty_like(p).copy_(noise)


def assert_same_weights(one: nn.Module, two: nn.Module, **tolerance) -> None:
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_shared_adam_equals_torchs_adam_step_by_step():
    ours, theirs = network(), network()
    shared = SharedAdam(ours.parameters(), lr=1e-3)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-3, foreach=False, fused=False)
    for step in range(20):
        give_gradients(ours.parameters(), step)
        give_gradients(theirs.parameters(), step)
        shared.step()
        reference.step()
        assert_same_weights(ours, theirs, rtol=1e-5, atol=1e-6)


def test_shared_rmsprop_is_the_papers_with_epsilon_inside_the_root():
    model = network()
    optimizer = SharedRMSprop(model.parameters(), lr=7e-4, alpha=0.9, eps=0.1)
    weights = [p.detach().double().numpy().copy() for p in model.parameters()]
    squares = [np.zeros_like(w) for w in weights]
    for step in range(20):
        give_gradients(model.parameters(), step)
        for w, s, p in zip(weights, squares, model.parameters(), strict=True):
            g = p.grad.double().numpy()
            s[:] = 0.9 * s + 0.1 * g**2
            w -= 7e-4 * g / np.sqrt(s + 0.1)
        optimizer.step()
    for w, p in zip(weights, model.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-4, atol=1e-6)


def test_shared_rmsprop_equals_torchs_where_epsilon_does_not_matter():
    ours, theirs = network(), network()
    shared = SharedRMSprop(ours.parameters(), lr=1e-3, alpha=0.99, eps=1e-30)
    reference = torch.optim.RMSprop(theirs.parameters(), lr=1e-3, alpha=0.99, eps=0.0)
    for step in range(10):
        give_gradients(ours.parameters(), step)
        give_gradients(theirs.parameters(), step)
        shared.step()
        reference.step()
    assert_same_weights(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_do_not_accumulate_from_one_update_to_the_next():
    """SGD with rate 1 and a constant gradient g moves by exactly −n·g in n updates."""
    shared, g, updates = nn.Linear(3, 2), 0.25, 8
    nn.init.zeros_(shared.weight)
    nn.init.zeros_(shared.bias)
    model = copy.deepcopy(shared)
    optimizer = torch.optim.SGD(shared.parameters(), lr=1.0)
    for n in range(1, updates + 1):
        (g * sum(p.sum() for p in model.parameters())).backward()
        apply_gradients(model, shared, optimizer, max_norm=40.0)
        assert all(p.grad is None for p in [*model.parameters(), *shared.parameters()])
        assert all((p == -n * g).all() for p in shared.parameters())


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_the_gradients_norm_is_clipped_over_all_weights_together(scale):
    shared = network()
    model = copy.deepcopy(shared)
    give_gradients(model.parameters(), 0)
    for p in model.parameters():
        p.grad *= scale
    reference = copy.deepcopy(model)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        q.grad = p.grad.clone()
    wanted_norm = nn.utils.clip_grad_norm_(reference.parameters(), 40.0)
    before = copy.deepcopy(shared)
    norm = apply_gradients(model, shared, torch.optim.SGD(shared.parameters(), lr=1.0), 40.0)
    torch.testing.assert_close(norm, wanted_norm)
    assert (norm > 40) == (scale == 10)
    for moved, old, p in zip(
        shared.parameters(), before.parameters(), reference.parameters(), strict=True
    ):
        torch.testing.assert_close(moved, old - p.grad, rtol=1e-5, atol=1e-6)


def test_a_gradient_with_other_strides_is_refused():
    shared = network()
    model = copy.deepcopy(shared)
    give_gradients(model.parameters(), 0)
    weight = model.conv1.weight
    weight.grad = weight.grad.contiguous()
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        apply_gradients(model, shared, SharedAdam(shared.parameters(), lr=1.0), 40.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_named_and_left_out(bad):
    shared = network().share_memory()
    optimizer = SharedAdam(shared.parameters(), lr=1.0)
    model, before = copy.deepcopy(shared), copy.deepcopy(shared)
    give_gradients(model.parameters(), 0)
    model.q.weight.grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match=r"q\.weight"):
        apply_gradients(model, shared, optimizer, 40.0)
    assert_same_weights(shared, before, rtol=0, atol=0)
    assert all(float(t.abs().sum()) == 0 for s in optimizer.state.values() for t in s.values())


def step_alone(model, optimizer, seeds) -> None:
    for seed in seeds:
        give_gradients(model.parameters(), seed)
        optimizer.step()


@pytest.mark.parametrize("kind", [SharedAdam, SharedRMSprop])
def test_two_processes_share_weights_moments_and_step_counts(kind):
    """Three steps in each of two processes, one after the other, are six steps in one."""
    model = network().share_memory()
    optimizer = kind(model.parameters(), lr=1e-3)
    assert all(t.is_shared() for state in optimizer.state.values() for t in state.values())
    context = multiprocessing.get_context("spawn")
    for seeds in (range(3), range(3, 6)):
        process = context.Process(target=step_alone, args=(model, optimizer, seeds))
        process.start()
        process.join()
        assert process.exitcode == 0
    alone = network()
    reference = kind(alone.parameters(), lr=1e-3)
    step_alone(alone, reference, range(6))
    assert_same_weights(model, alone, rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(optimizer.state.values(), reference.state.values(), strict=True):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])
    if kind is SharedAdam:
        assert all(int(state["step"]) == 6 for state in optimizer.state.values())


def step_on_rare_gradients(p, optimizer, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(250):
        p.grad = torch.zeros_like(p)
        some = torch.randint(p.numel(), (20_000,), generator=generator)
        p.grad.view(-1)[some] = 1e-2 * torch.randn(20_000, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", [SharedAdam, SharedRMSprop])
def test_steps_of_two_processes_at_the_same_time_stay_as_small_as_those_of_one(kind):
    """One's m with the other's v would make steps that have no bound: weights of hundreds."""
    p = torch.nn.Parameter(torch.zeros(512, 3136)).share_memory_()
    optimizer = kind([p], lr=2.5e-4)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=step_on_rare_gradients, args=(p, optimizer, seed)) for seed in (1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert float(p.detach().abs().max()) < 0.1


def announce_and_step(model, optimizer, ready) -> None:
    ready.set()
    step_alone(model, optimizer, [0])


def test_adam_waits_while_another_process_steps():
    model = network().share_memory()
    optimizer, before = SharedAdam(model.parameters(), lr=1e-3), copy.deepcopy(model)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    with optimizer.lock:
        process = context.Process(target=announce_and_step, args=(model, optimizer, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(0.5)  # much longer than a step takes
        assert_same_weights(model, before, rtol=0, atol=0)
    process.join()
    assert process.exitcode == 0
    assert not torch.equal(model.q.weight, before.q.weight)


def hold(lock) -> None:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_its_step_does_not_stop_the_others_for_ever():
    model = network().share_memory()
    optimizer = SharedAdam(model.parameters(), lr=1e-3)
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(optimizer.lock,))
    process.start()
    process.join()
    before = copy.deepcopy(model)
    step_alone(model, optimizer, [0])
    assert not torch.equal(model.q.weight, before.q.weight)


@pytest.mark.parametrize("kind", [SharedAdam, SharedRMSprop])
def test_moments_have_their_parameters_strides(kind):
    model = network()
    for p, state in kind(model.parameters(), lr=1e-3).state.items():
        assert all(t.stride() == p.stride() for t in state.values() if t.dim())
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [SharedAdam, SharedRMSprop])
def test_a_loaded_state_lies_in_the_same_shared_memory_and_goes_on(kind):
    model = network().share_memory()
    optimizer = kind(model.parameters(), lr=1e-3)
    step_alone(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed_model = copy.deepcopy(model).share_memory()
    resumed = kind(resumed_model.parameters(), lr=1e-3)
    tensors = [t for state in resumed.state.values() for t in state.values()]
    places = [t.data_ptr() for t in tensors]
    load_optimizer_state(resumed, saved)
    tensors = [t for state in resumed.state.values() for t in state.values()]
    assert [t.data_ptr() for t in tensors] == places
    assert all(t.is_shared() for t in tensors)
    step_alone(model, optimizer, range(3, 6))
    step_alone(resumed_model, resumed, range(3, 6))
    assert_same_weights(model, resumed_model, rtol=0, atol=0)


def test_the_average_network_moves_in_place_by_the_formula():
    shared = network()
    average = copy.deepcopy(shared).requires_grad_(False)
    for p in shared.parameters():
        p.data.add_(1.0)
    start, target = copy.deepcopy(average), copy.deepcopy(shared)
    places = [p.data_ptr() for p in average.parameters()]
    for n in range(1, 6):
        update_average(average, shared, decay=0.9)
        for a, first, p in zip(
            average.parameters(), start.parameters(), shared.parameters(), strict=True
        ):
            torch.testing.assert_close(a, p - 0.9**n * (p - first), rtol=1e-4, atol=1e-5)
    assert [p.data_ptr() for p in average.parameters()] == places
    assert_same_weights(shared, target, rtol=0, atol=0)


def test_weights_are_copied_in_place():
    source, target = network(), ActorCritic(3)
    places = [p.data_ptr() for p in target.parameters()]
    copy_weights(target, source)
    assert_same_weights(source, target, rtol=0, atol=0)
    assert [p.data_ptr() for p in target.parameters()] == places
    assert target.conv1.weight.stride() == source.conv1.weight.stride()
