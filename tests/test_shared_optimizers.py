"""Shared optimizers and weights: against torch.optim, across processes, without accumulation."""

import copy
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import CONTINUOUS, module
from torch import nn

import acer_continuous
from acer_atari import (
    ActorCritic,
    SharedAdam,
    SharedRMSprop,
    apply_gradients,
    copy_weights,
    restore,
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


def shared_by(model, optimizer) -> SimpleNamespace:
    return SimpleNamespace(model=model, optimizer=optimizer)


def descent(model) -> torch.optim.SGD:
    """Plain gradient descent, by which the weights move by their gradients."""
    return torch.optim.SGD(model.weights, lr=1.0)


def loss_of(model, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a loss of random gradients, and these."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    gradients = [scale * torch.randn(p.shape, generator=generator) for p in parameters]
    return sum((g * p).sum() for g, p in zip(gradients, parameters, strict=True)), gradients


def networks() -> dict:
    """Return a network of each kind: separate weights, and weights that are views of one vector."""
    torch.manual_seed(0)
    flat = acer_continuous.flatten(acer_continuous.ActorCritic(3, 2))
    return {"separate": network(), "flat": flat}


def own_copy(model) -> nn.Module:
    """Return a worker's own copy, as a worker makes it."""
    copied = copy.deepcopy(model)
    return acer_continuous.flatten(copied) if hasattr(copied, "sizes") else copied


@pytest.mark.parametrize("kind", ["separate", "flat"])
def test_gradients_do_not_accumulate_from_one_update_to_the_next(kind):
    """Gradient descent with rate 1 moves by the latest gradient alone."""
    shared = networks()[kind]
    model, optimizer = own_copy(shared), descent(shared)
    for seed in range(4):
        before = copy.deepcopy(shared)
        loss, gradients = loss_of(model, seed, 1e-3)
        apply_gradients(loss, model, shared_by(shared, optimizer), max_norm=40.0)
        for moved, old, g in zip(shared.parameters(), before.parameters(), gradients, strict=True):
            torch.testing.assert_close(moved, old - g, rtol=1e-5, atol=1e-7)
        assert all(weights.grad is None for weights in shared.weights)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", ["separate", "flat"])
@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_the_gradients_norm_is_clipped_over_all_weights_together(kind, scale):
    shared = networks()[kind]
    model, before = own_copy(shared), copy.deepcopy(shared)
    loss, gradients = loss_of(model, 0, scale)
    wanted = torch.cat([g.flatten() for g in gradients]).double().norm()
    norm = apply_gradients(loss, model, shared_by(shared, descent(shared)), 40.0)["grad_norm"]
    assert float(norm) == pytest.approx(float(wanted), rel=1e-4)
    assert (norm > 40) == (scale == 10)
    factor = min(1, 40 / float(wanted))
    for moved, old, g in zip(shared.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(moved, old - factor * g, rtol=1e-4, atol=1e-5)


def test_a_gradient_with_other_strides_is_refused():
    shared = network()
    model, before = copy.deepcopy(shared).to(memory_format=torch.contiguous_format), network()
    optimizer = SharedAdam(shared.parameters(), lr=1.0)
    with pytest.raises(RuntimeError, match="strides"):
        apply_gradients(loss_of(model)[0], model, shared_by(shared, optimizer), 40.0)
    assert_same_weights(shared, before, rtol=0, atol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["separate", "flat"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_named_and_left_out(kind, bad):
    shared = networks()[kind].share_memory()
    optimizer = SharedAdam(shared.weights, lr=1.0)
    model, before = own_copy(shared), copy.deepcopy(shared)
    layer = {"separate": "q", "flat": "value_net.4"}[kind]
    loss = loss_of(model)[0] + (bad * model.get_parameter(f"{layer}.weight")[0, :1]).sum()
    with pytest.raises(FloatingPointError, match=rf"\({layer}\.weight\)"):
        apply_gradients(loss, model, shared_by(shared, optimizer), 40.0)
    assert_same_weights(shared, before, rtol=0, atol=0)
    assert not any(t.any() for s in optimizer.state.values() for t in s.values())


# Weights that are views of one vector =============================================================


def control_loss(script, model, average_model, seed: int) -> torch.Tensor:
    """Return the script's own loss on random experience."""
    generator = torch.Generator().manual_seed(seed)
    x, actions, rewards, mu_mean = (
        torch.randn(*size, generator=generator) for size in [(21, 3), (20, 2), (20,), (20, 2)]
    )
    args = script.parse_args([])
    if script.SCRIPT == "acer_continuous.py":
        segment = script.Segment(x, actions, rewards, mu_mean, False)
        return script.acer_loss(model, average_model, segment, args, generator)[0]
    return script.a3c_loss(model, script.Segment(x, actions, rewards, False), args)[0]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_updates_of_one_vector_are_those_of_plain_autograd(name):
    """Three updates, against separate parameters, torch.autograd.grad and a descent by hand."""
    script = module(name)
    torch.manual_seed(0)
    plain, average = script.ActorCritic(3, 2), script.ActorCritic(3, 2)
    shared = script.flatten(copy.deepcopy(plain)).share_memory()
    model = script.flatten(copy.deepcopy(shared))
    (vector,), optimizer = model.weights, descent(shared)
    for seed in range(3):
        script.copy_weights(model, shared)
        assert torch.equal(vector, nn.utils.parameters_to_vector(plain.parameters()))
        loss = control_loss(script, plain, average, seed)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        norm = script.apply_gradients(
            control_loss(script, model, average, seed), model, shared_by(shared, optimizer), 1e9
        )["grad_norm"]
        wanted = torch.cat([g.flatten() for g in gradients])
        assert float(norm) == pytest.approx(float(wanted.norm()), rel=1e-5)
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p -= g
        found = nn.utils.parameters_to_vector(shared.parameters())
        torch.testing.assert_close(found, nn.utils.parameters_to_vector(plain.parameters()))
        nn.utils.vector_to_parameters(found.detach(), plain.parameters())  # without roundings
        assert not vector.grad.any()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_one_vector_stays_all_there_is_to_weights_and_gradients(name):
    """After copying, sharing and an update: neither weights nor gradients have left it."""
    script = module(name)
    shared = script.flatten(script.ActorCritic(3, 2)).share_memory()
    model = script.flatten(copy.deepcopy(shared))
    loss = control_loss(script, model, shared, 0)
    script.apply_gradients(loss, model, shared_by(shared, descent(shared)), 40.0)
    for net in (shared, model):
        (vector,) = net.weights
        place = vector.data_ptr()
        for p in net.parameters():
            assert p.data_ptr() == place
            place += 4 * p.numel()
        assert place == vector.data_ptr() + 4 * vector.numel()
    assert shared.weights[0].is_shared()
    assert model.weights[0].data_ptr() != shared.weights[0].data_ptr()
    place = model.weights[0].grad.data_ptr()
    for p in model.parameters():
        assert p.grad.data_ptr() == place
        place += 4 * p.numel()


# Several processes ================================================================================


def step_alone(model, optimizer, seeds) -> None:
    for seed in seeds:
        give_gradients(model.weights, seed)
        optimizer.step()


@pytest.mark.parametrize("weights", ["separate", "flat"])
@pytest.mark.parametrize("kind", [SharedAdam, SharedRMSprop])
def test_two_processes_share_weights_moments_and_step_counts(kind, weights):
    """Three steps in each of two processes, one after the other, are six steps in one."""
    model = networks()[weights].share_memory()
    optimizer = kind(model.weights, lr=1e-3)
    assert all(t.is_shared() for state in optimizer.state.values() for t in state.values())
    context = multiprocessing.get_context("spawn")
    for seeds in (range(3), range(3, 6)):
        process = context.Process(target=step_alone, args=(model, optimizer, seeds))
        process.start()
        process.join()
        assert process.exitcode == 0
    alone = networks()[weights]
    reference = kind(alone.weights, lr=1e-3)
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
    restore(resumed.state_dict(), saved, "run")
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
