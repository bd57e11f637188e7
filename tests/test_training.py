"""The training loop: settings that every trained method takes, interrupts, progress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import handful
from handful import progress
from handful.schedule import Schedule, seeded, tip_schedule
from handful.train import Source, train_on

SCHEDULES = {"sgd": Schedule(epochs=6, batch_size=8, lr=0.1), "adamw": tip_schedule(6, 8, 0.01)}


class Rows:
    """A source of rows, that can be interrupted at a batch."""

    def __init__(self, stop_at: int = -1) -> None:
        self.x, self.stop_at, self.asked = torch.randn(40, 5, generator=seeded(1)), stop_at, 0

    def __len__(self) -> int:
        return len(self.x)

    def identity(self) -> str:
        return "rows"

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        self.asked += 1
        if self.asked == self.stop_at:
            raise KeyboardInterrupt
        return self.x[rows] + 0.1 * torch.randn(len(rows), 5, generator=generator)


LABELS = torch.arange(3).repeat(14)[:40]


def run_of(source: Source, schedule: Schedule, key: str | None = None):
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    return train_on(model, source, LABELS, schedule, seeded(0), key=key), model.weight.detach()


def run(source: Source, schedule: Schedule, key: str | None = None):
    found, weight = run_of(source, schedule, key)
    return found.losses, weight


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "training"


# -- interrupts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stops", [[13], [13, 3, 9]])
def test_an_interrupted_training_goes_on_to_the_same_end(name: str, stops: list[int], own_folder: Path):
    whole, expected = run(Rows(), SCHEDULES[name])
    for stop in stops:
        found, _ = run_of(Rows(stop), SCHEDULES[name], "this")
        assert found.interrupted
        assert "interrupted after epoch" in found.notes[0]
        assert "fit again with the same data and parameters" in found.notes[0]
        assert found.losses == whole[: len(found.losses)]
        assert len(list(own_folder.iterdir())) == 1
    found, weight = run_of(Rows(), SCHEDULES[name], "this")
    assert found.losses == whole
    assert not found.interrupted
    torch.testing.assert_close(weight, expected, atol=0, rtol=0)
    assert not list(own_folder.iterdir())


def test_what_is_kept_is_the_last_whole_epoch():
    schedule = SCHEDULES["sgd"]
    losses, weight = run(Rows(13), schedule, "this")  # in epoch 3 of 5 batches each
    assert len(losses) == 10
    shorter = [run(Rows(stop), schedule, f"until {stop}")[1] for stop in (11, 14)]
    torch.testing.assert_close(weight, shorter[0], atol=0, rtol=0)
    torch.testing.assert_close(weight, shorter[1], atol=0, rtol=0)


@pytest.mark.parametrize(("stop", "key"), [(3, "this"), (13, None)])
def test_an_interrupt_with_nothing_to_keep_goes_up(stop: int, key: str | None, own_folder: Path):
    with pytest.raises(KeyboardInterrupt):
        run(Rows(stop), SCHEDULES["sgd"], key)
    assert not own_folder.exists()


def test_another_training_does_not_take_it_up(own_folder: Path):
    run(Rows(13), SCHEDULES["sgd"], "this")
    for key, schedule in (("that", SCHEDULES["sgd"]), ("this", Schedule(epochs=7, batch_size=8, lr=0.1))):
        fresh, _ = run(Rows(), schedule)
        again, _ = run(Rows(), schedule, key)
        assert again == fresh
    assert len(list(own_folder.iterdir())) == 1


def test_a_damaged_file_costs_the_resuming_alone(own_folder: Path):
    whole, _ = run(Rows(), SCHEDULES["sgd"])
    run(Rows(13), SCHEDULES["sgd"], "this")
    next(own_folder.iterdir()).write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="damaged file"):
        losses, _ = run(Rows(), SCHEDULES["sgd"], "this")
    assert losses == whole


def test_a_disk_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept"):
        found, _ = run_of(Rows(13), SCHEDULES["sgd"], "this")
    assert "interrupted after epoch 2 of 6" in found.notes[0]
    assert "go on" not in found.notes[0]


TRAINED = {
    "coop": {"length": 2, "epochs": 3},
    "cocoop": {"epochs": 3, "batch_size": 8},
    "clip-adapter": {"epochs": 3, "selection": "fixed"},
    "text-tuning": {"epochs": 3},
    "tip-adapter-f": {"epochs": 3},
    "mma": {"width": 4, "epochs": 3, "cache": "memory"},
    "fine-tuning": {"epochs": 3, "cache": "memory"},
}


def stop_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C in a step of an optimizer, after `number` of them."""
    count = iter(range(1000))
    for name in ("SGD", "AdamW"):

        class Stopping(getattr(torch.optim, name)):
            def step(self, closure=None):
                if next(count) == number:
                    raise KeyboardInterrupt
                return super().step(closure)

        patch.setattr(torch.optim, name, Stopping)


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_fit_is_usable_and_goes_on(
    name: str, mini: handful.Backbone, support: handful.ImageSet, monkeypatch: pytest.MonkeyPatch
):
    few = support[np.arange(0, 40, 2)]
    whole = handful.METHODS[name](mini, views=2, **TRAINED[name]).fit(few)
    clf = handful.METHODS[name](mini, views=2, **TRAINED[name])
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * len(whole.losses_) // 3)
        with pytest.raises(handful.Interrupted, match="after epoch 2 of 3"):
            clf.fit(few)
    assert clf.predict_proba(few).shape == (20, 10)
    assert "interrupted after epoch 2 of 3" in clf.notes_[-1]
    assert clf.losses_ == whole.losses_[: len(clf.losses_)]
    clf.fit(few)
    assert clf.losses_ == whole.losses_
    assert clf.notes_[-1] == "Training had been interrupted after epoch 2, and went on from there."
    np.testing.assert_array_equal(clf.decision_function(few), whole.decision_function(few))


def test_ctrl_c_on_the_command_line(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call):
    words = ["fit", digits / "test", "--shots", 1, "--method", "coop", "--out", tmp_path / "model"]
    words += ["-p", "epochs=3", "-p", "views=0", "-p", "length=2"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        code, out, err = call(*words)
    assert (code, out) == (130, "")
    assert "Training was interrupted after epoch 2 of 3" in err
    assert f"{tmp_path / 'model'} holds it." in err
    assert "interrupted after epoch 2" in handful.load(tmp_path / "model").notes_[-1]
    code, out, err = call(*words)
    assert code == 0
    assert "went on from there" in handful.load(tmp_path / "model").notes_[-1]


class InterruptedAtTheEnd(nn.Linear):
    """Reads 6 epochs of 5 batches, and is interrupted in the look at what is left."""

    read = 0

    def forward(self, x: Tensor) -> Tensor:
        self.read += 1
        if self.read == 31:
            raise KeyboardInterrupt
        return super().forward(x)


def test_an_interrupt_after_the_last_epoch_loses_nothing():
    schedule = SCHEDULES["sgd"]
    model = InterruptedAtTheEnd(5, 3)
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    with pytest.raises(KeyboardInterrupt):
        train_on(model, Rows(), LABELS, schedule, seeded(0), key="this")
    losses, weight = run(Rows(), schedule, "this")
    whole, expected = run(Rows(), schedule)
    assert losses == whole
    torch.testing.assert_close(weight, expected, atol=0, rtol=0)


# -- settings ----------------------------------------------------------------------------------------


def test_pieces_of_a_batch_add_up():
    plain = Schedule(epochs=3, batch_size=8, lr=0.1)
    whole, expected = run(Rows(), plain)
    losses, weight = run(Rows(), plain.change({"accumulate": 3}))
    np.testing.assert_allclose(losses, whole, rtol=1e-5)
    torch.testing.assert_close(weight, expected)


def test_clipping_bounds_the_step():
    schedule = Schedule(epochs=1, batch_size=40, lr=1.0, warmup_lr=None)
    free, weight = run(Rows(), schedule)
    held, small = run(Rows(), schedule.change({"clip": 0.01, "weight_decay": 0, "momentum": 0}))
    assert held == free
    assert float(small.norm()) <= 0.01 < float(weight.norm())


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.train.has_bf16", lambda device: there)
    schedule = Schedule(epochs=3, batch_size=8, lr=0.1)
    whole, _ = run(Rows(), schedule)
    half = schedule.change({"precision": "bfloat16"})
    if there:
        losses, weight = run(Rows(), half)
        assert losses != whole
        np.testing.assert_allclose(losses, whole, rtol=0.02)
        assert weight.dtype == torch.float32
    else:
        with pytest.warns(UserWarning, match="no bfloat16 instructions"):
            losses, _ = run(Rows(), half)
        assert losses == whole


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_method_takes_them(name: str, mini: handful.Backbone, support: handful.ImageSet):
    few = support[np.arange(0, 40, 2)]
    make = handful.METHODS[name]
    plain = make(mini, views=0, **TRAINED[name]).fit(few)
    pieces = make(mini, views=0, training={"accumulate": 2}, **TRAINED[name]).fit(few)
    np.testing.assert_allclose(pieces.losses_, plain.losses_, rtol=1e-3)
    held = make(mini, views=0, training={"clip": 1e-9, "weight_decay": 0}, **TRAINED[name]).fit(few)
    assert not np.allclose(held.decision_function(few), plain.decision_function(few), atol=1e-6)
    with pytest.raises(handful.ParameterError, match="training="):
        make(mini, views=0, training=["clip"], **TRAINED[name]).fit(few)


# -- progress ----------------------------------------------------------------------------------------


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter(np.arange(0, 1000, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("Training", 12) as advance:
        for number in range(12):
            advance(1, note=f"epoch 1 of 1, loss {number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: 3 of 12, epoch 1 of 1, loss 2, 90 s left"
    assert len(lines) == 4
