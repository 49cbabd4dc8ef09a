"""The training loop: what it computes, and that neither a kill nor the caller's random state changes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny  # noqa: F401  (sets the number of threads)
import torch
from torch import Tensor, nn

from uad_core import training
from uad_core.errors import UserError
from uad_core.training import Schedule, pick_device, split, train

CPU = torch.device("cpu")


class Points:
    """N random points (N, 3), batched by index."""

    def __init__(self, count: int = 10):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(5))
        self.batches: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, device: torch.device) -> Tensor:
        self.batches.append(index)
        return self.x[index].to(device)


def network() -> nn.Module:
    """Everything that could break a resumed run: weights, running statistics, and dropout that draws numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3)
        )


def fit(model: nn.Module, points: Points | None = None, loss=None, checkpoint=None, key="run", seed=0, **schedule):
    schedule = Schedule(**{**dict(epochs=6, batch_size=4, lr=1e-2, decay="onecycle"), **schedule})
    loss = loss or (lambda x: (model(x) - x).square().mean())
    options = dict(seed=seed, device=CPU, checkpoint=checkpoint, key=key, progress=False)
    return train(model, points or Points(), loss, schedule, **options)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def every_epoch(monkeypatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)


def killed_after(epochs: int, checkpoint: Path, **options) -> None:
    """Train, and let the process die when that many epochs are done."""
    done, run = [], training._epoch

    def dying(*arguments):
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(1)
        return run(*arguments)

    training._epoch = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(network(), checkpoint=checkpoint, **options)
    finally:
        training._epoch = run


# --- what is computed ----------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, points: Points, epochs: int, lr: float, clip: float = 0.0) -> list[float]:
    """The loop without its machinery: Adam at a constant rate, losses averaged over images."""
    optimiser = torch.optim.Adam(model.parameters(), lr)
    history = []
    model.train()
    with torch.random.fork_rng():
        for epoch in range(epochs):
            torch.manual_seed(3 * 1_000_003 + epoch)
            losses = np.zeros(len(points))
            for index in torch.randperm(len(points)).split(4):
                optimiser.zero_grad()
                x = points.x[index]
                value = (model(x) - x).square().mean()
                value.backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                losses[index] = value.item()
            history.append(losses.mean())
    return history


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_it_is_adam_and_the_loss_is_the_mean_over_images(clip: float) -> None:
    model, twin = network(), network()
    found = fit(model, decay="constant", clip=clip, seed=3)  # ten images in batches of 4, 4 and 2
    assert found == pytest.approx(by_hand(twin, Points(), 6, 1e-2, clip), rel=1e-5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not model.training


def test_gradients_are_clipped_before_the_step(monkeypatch) -> None:
    norms, step = [], torch.optim.AdamW.step
    model = network()

    def watched(self, *arguments, **options):
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(model, clip=0.05)
    assert len(norms) == 18 and max(norms) <= 0.05 * 1.001
    norms.clear()
    fit(model)
    assert max(norms) > 0.05


@pytest.mark.parametrize("epochs", range(1, 12))
def test_a_schedule_may_be_of_any_length(epochs: int) -> None:
    assert len(fit(network(), Points(4), epochs=epochs)) == epochs  # of one step each


@pytest.mark.parametrize("decay", ["constant", "onecycle"])
def test_the_learning_rate_follows_its_schedule(monkeypatch, decay: str) -> None:
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(network(), epochs=20, decay=decay)
    assert len(rates) == 60
    if decay == "constant":
        assert set(rates) == {1e-2}
        return
    peak = int(np.argmax(rates))
    assert max(rates) == pytest.approx(1e-2) and peak == round(0.1 * 60) - 1
    assert rates[0] == pytest.approx(1e-2 / 25) and rates[-1] < 1e-6
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 4, [3]), (1, 4, [1]), (5, 4, [5]), (3, 1, [1, 1, 1]),
     (3, 2, [3]), (17, 8, [8, 9])],
)  # fmt: skip
def test_a_last_batch_of_one_joins_the_one_before(count: int, size: int, lengths: list[int]) -> None:
    batches = split(torch.arange(count), size)
    assert list(map(len, batches)) == lengths and torch.equal(torch.cat(batches), torch.arange(count))


def test_batch_normalisation_survives_every_number_of_images() -> None:
    for count in (2, 5, 9):
        points = Points(count)
        history = fit(network(), points, epochs=2)
        assert np.isfinite(history).all()
        assert sorted(torch.cat(points.batches).tolist()) == sorted(2 * list(range(count)))


def test_every_epoch_has_an_order_of_its_own() -> None:
    points = Points(20)
    fit(network(), points, epochs=2, batch_size=20)
    assert not torch.equal(*points.batches)


def test_weights_without_gradient_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model)
    assert torch.equal(model[0].weight, before) and model[0].weight.grad is None


def test_the_seed_changes_the_result_and_repeats_it() -> None:
    models = [network() for _ in range(3)]
    histories = [fit(model, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)]
    assert histories[0] == histories[1] != histories[2]
    assert equal(models[0], models[1]) and not equal(models[0], models[2])


def test_the_caller_s_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = fit(network())
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == before_numpy).all()
    torch.manual_seed(2)
    assert fit(network()) == first


def test_progress_goes_to_stderr_and_only_if_wanted(capfd) -> None:
    fit(network())
    assert capfd.readouterr() == ("", "")
    model = network()
    loss = lambda x: model(x).square().mean()  # noqa: E731
    train(model, Points(), loss, Schedule(2, 4, 1e-3), seed=0, device=CPU)
    out, err = capfd.readouterr()
    assert out == "" and "training" in err and "loss=" in err


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_divergence_is_one_line(tmp_path, bad: float) -> None:
    model, file = network(), tmp_path / "run.pt"
    with pytest.raises(UserError, match="training diverged: .* lower the learning rate with --set lr="):
        fit(model, loss=lambda x: model(x).mean() * 0 + bad, checkpoint=file)
    assert not file.exists()


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["constant", "onecycle"])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, every_epoch, decay: str) -> None:
    straight, resumed, points = network(), network(), Points()
    expected = fit(straight, decay=decay)
    killed_after(3, tmp_path / "run.pt", decay=decay)
    torch.manual_seed(99)  # a new process starts with another random state
    assert fit(resumed, points, checkpoint=tmp_path / "run.pt", decay=decay) == expected
    assert equal(straight, resumed)
    assert len(points.batches) == 3 * 3  # only the three epochs that were missing


def test_a_finished_checkpoint_is_not_trained_again(tmp_path) -> None:
    first, second, points = network(), network(), Points()
    history = fit(first, checkpoint=tmp_path / "run.pt")  # seconds have not passed, but the last epoch is always kept
    assert fit(second, points, checkpoint=tmp_path / "run.pt") == history
    assert points.batches == [] and equal(first, second)


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path) -> None:
    fit(network(), checkpoint=tmp_path / "run.pt", key="another")
    model, fresh, points = network(), network(), Points()
    assert fit(model, points, checkpoint=tmp_path / "run.pt") == fit(fresh)
    assert len(points.batches) == 6 * 3 and equal(model, fresh)


def harmed(file: Path, harm: str) -> None:
    content = bytearray(file.read_bytes())
    if harm == "not a checkpoint":
        torch.save([1, 2], file)
        return
    if harm == "flipped":
        content[len(content) // 2] ^= 0xFF
    changed = {"empty": b"", "cut": content[: len(content) // 2], "text": b"hello", "flipped": content}[harm]
    file.write_bytes(bytes(changed))


@pytest.mark.parametrize("harm", ["empty", "cut", "text", "flipped", "not a checkpoint"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, every_epoch, harm: str) -> None:
    file = tmp_path / "run.pt"
    killed_after(3, file)
    harmed(file, harm)
    model, fresh, points = network(), network(), Points()
    assert fit(model, points, checkpoint=file) == fit(fresh)
    assert len(points.batches) == 6 * 3 and equal(model, fresh)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, every_epoch, monkeypatch) -> None:
    file = tmp_path / "run.pt"
    killed_after(2, file)
    before = file.read_bytes()

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fit(network(), checkpoint=file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_checkpoints_are_seconds_apart(tmp_path, monkeypatch) -> None:
    saved, clock = [], iter(range(0, 1000, 6))
    monkeypatch.setattr(training, "_save", lambda state, history, *rest: saved.append(len(history)))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    fit(network(), checkpoint=tmp_path / "run.pt", epochs=8)
    assert saved == [3, 6, 8]  # 18 seconds of 6-second epochs each, and the last epoch


# --- devices -------------------------------------------------------------------------------------------------------


def test_devices_are_taken_at_their_word() -> None:
    assert pick_device("cpu") == CPU and pick_device(CPU) == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for odd in ("gpu", "cuda:99", "", "cpu:x"):
        with pytest.raises(UserError, match=f"no device '{odd}' here .*: use --device auto or --device cpu") as error:
            pick_device(odd)
        assert "\n" not in str(error.value)


def test_the_best_device_is_cuda_then_mps(monkeypatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    for cuda, mps, best in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=cuda: found)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda found=mps: found)
        assert pick_device().type == best


def test_half_precision_trains_too() -> None:
    history = fit(network(), precision="bf16-mixed", epochs=10)
    assert np.isfinite(history).all() and history[-1] < history[0]


# --- what a schedule may ask for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_half_precision_resumes_with_its_scaler(tmp_path, every_epoch, precision: str, clip: float) -> None:
    options = dict(precision=precision, clip=clip)
    straight, resumed = network(), network()
    expected = fit(straight, **options)
    killed_after(3, tmp_path / "run.pt", **options)
    assert fit(resumed, checkpoint=tmp_path / "run.pt", **options) == expected and equal(straight, resumed)
    assert expected[-1] < expected[0]


def test_the_scaler_s_state_is_in_the_checkpoint(tmp_path) -> None:
    """A resumed run goes on with the scale that the killed one had found, not with the first one."""
    fit(network(), checkpoint=tmp_path / "run.pt", precision="16-mixed", epochs=2)
    learner = training.Learner(network(), Schedule(2, 4, 1e-2, decay="onecycle", precision="16-mixed"), CPU, 6)
    learner.scaler._growth_interval = 1
    first = learner.scaler.get_scale()
    for _ in range(3):
        learner.learn([(Points().x, 1.0)], lambda x: learner.model(x).square().mean())
    training._save(learner, [1.0], tmp_path / "run.pt", "run")
    again = training.Learner(network(), Schedule(2, 4, 1e-2, decay="onecycle", precision="16-mixed"), CPU, 6)
    training._resume(again, tmp_path / "run.pt", "run", CPU)
    assert again.scaler.get_scale() == learner.scaler.get_scale() != first


@pytest.mark.parametrize(("steps", "updates", "epochs"), [(7, 7, 3), (6, 6, 2), (1, 3, 1), (0, 3, 1)])
def test_a_number_of_steps_is_reached_by_further_epochs(monkeypatch, steps: int, updates: int, epochs: int) -> None:
    taken, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: taken.append(1) or step(self, *a, **k))
    assert len(fit(network(), steps=steps, epochs=1)) == epochs and len(taken) == updates  # three batches an epoch


def test_accumulated_batches_make_one_update_of_their_mean(monkeypatch) -> None:
    def plain() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Linear(3, 3)

    one, other, points = plain(), plain(), Points(8)
    whole = fit(one, points, batch_size=8, epochs=3)
    parts = fit(other, Points(8), batch_size=2, accumulate=4, epochs=3)
    assert parts == pytest.approx(whole, rel=1e-5)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_decoupled() -> None:
    def weights(decay: float) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(3, 3, bias=False)
        before = model.weight.detach().clone()
        fit(model, Points(4), loss=lambda x: model(x).sum() * 0, epochs=1, decay="constant", weight_decay=decay)
        return model.weight / before

    torch.testing.assert_close(weights(0.5), torch.full((3, 3), 1 - 0.5 * 1e-2))
    torch.testing.assert_close(weights(0.0), torch.ones(3, 3))


def test_the_average_of_the_weights_is_the_result_and_resumes(tmp_path, every_epoch) -> None:
    plain, averaged, resumed = network(), network(), network()
    fit(plain)
    expected = fit(averaged, ema=0.8)
    assert not equal(plain, averaged)
    killed_after(3, tmp_path / "run.pt", ema=0.8)
    assert fit(resumed, checkpoint=tmp_path / "run.pt", ema=0.8) == expected and equal(averaged, resumed)


def test_the_average_is_the_recursion_s() -> None:
    """One weight, pushed by one learning rate at a time: m <- 0.5 m + 0.5 w after each update."""
    model = nn.Linear(1, 1, bias=False)
    seen = []

    def loss(x: Tensor) -> Tensor:
        seen.append(model.weight.item())
        return model.weight.sum()

    fit(model, Points(4), loss, epochs=4, decay="constant", ema=0.5)
    weights = [*seen[1:], 2 * seen[-1] - seen[-2]]  # Adam's steps are equal where the gradient is
    mean = weights[0]
    for w in weights[1:]:
        mean = 0.5 * mean + 0.5 * w
    assert model.weight.item() == pytest.approx(mean, abs=1e-4)
