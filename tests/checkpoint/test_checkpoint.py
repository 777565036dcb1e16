from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dinodomain.checkpoint import (
    FORMAT,
    BrokenCheckpoint,
    CheckpointPlan,
    TrainState,
    latest,
    load_checkpoint,
    migrate,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from dinodomain.errors import UserError


def make_state(step: int, value: float = 1.0) -> TrainState:
    weights = {"vit.weight": torch.full((2, 3), value), "vit.bias": torch.arange(3.0)}
    return TrainState(
        step=step,
        tensors={"student": weights, "teacher": {"vit.weight": torch.full((2, 3), value + 1)}, "objective": {}},
        plan={"seed": 3, "optim": {"lr": 1e-3}},
        loader={"step": step},
        counters={"skipped": 0},
        backbone={"dim": 3},
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    folder = save_checkpoint(tmp_path, make_state(12))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.folder, loaded.notes, loaded.state.step) == (folder, (), 12)
    assert folder.name == "step-000012"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000012\n"
    assert loaded.state.plan == {"seed": 3, "optim": {"lr": 1e-3}}
    assert torch.equal(loaded.state.tensors["student"]["vit.weight"], torch.ones(2, 3))
    assert loaded.state.tensors["objective"] == {}


def test_equal_states_give_equal_bytes(tmp_path):
    first, second = (save_checkpoint(tmp_path / name, make_state(4)) for name in "ab")
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, make_state(step), keep=2)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000015", "step-000020"]


def test_a_save_of_an_earlier_step_drops_the_abandoned_future(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, make_state(step))
    save_checkpoint(tmp_path, make_state(8))
    assert [latest(tmp_path).name, load_checkpoint(tmp_path).state.step] == ["step-000008", 8]
    assert not (tmp_path / "checkpoints" / "step-000015").exists()


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, make_state(5, value=1.0))
    save_checkpoint(tmp_path, make_state(5, value=7.0))
    assert float(load_checkpoint(tmp_path).state.tensors["student"]["vit.weight"][0, 0]) == 7.0


@pytest.mark.parametrize("name", ["student.safetensors", "teacher.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path, name, damage):
    save_checkpoint(tmp_path, make_state(5))
    broken = save_checkpoint(tmp_path, make_state(10)) / name
    data = bytearray(broken.read_bytes())
    if damage == "truncate":
        broken.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-5] ^= 1
        broken.write_bytes(data)
    else:
        broken.unlink()
    loaded = load_checkpoint(tmp_path)
    assert loaded.state.step == 5
    assert len(loaded.notes) == 1
    assert str(broken) in loaded.notes[0]
    with pytest.raises(BrokenCheckpoint, match=name):
        load_checkpoint(broken.parent)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_by_name(tmp_path):
    folder = save_checkpoint(tmp_path, make_state(5))
    (folder / "student.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"student\.safetensors"):
        load_checkpoint(tmp_path)


def test_a_folder_the_pointer_never_announced_is_used_last(tmp_path):
    save_checkpoint(tmp_path, make_state(5))
    newest = save_checkpoint(tmp_path, make_state(10))
    (tmp_path / "checkpoints" / "latest").write_text("step-000005\n")
    assert load_checkpoint(tmp_path).state.step == 5
    (tmp_path / "checkpoints" / "step-000005" / "state.json").unlink()
    assert load_checkpoint(tmp_path).folder == newest


def test_a_torn_pointer_means_the_newest_folder(tmp_path):
    save_checkpoint(tmp_path, make_state(5))
    save_checkpoint(tmp_path, make_state(10))
    (tmp_path / "checkpoints" / "latest").write_bytes(b"step-0000\xff")
    assert load_checkpoint(tmp_path).state.step == 10


def test_leftovers_of_a_killed_save_are_never_read_and_are_removed(tmp_path):
    done = save_checkpoint(tmp_path, make_state(5))
    half = tmp_path / "checkpoints" / ".step-000010.tmp"
    shutil.copytree(done, half)
    assert load_checkpoint(tmp_path).state.step == 5
    save_checkpoint(tmp_path, make_state(10))
    assert not half.exists()


def test_a_full_disk_leaves_the_previous_checkpoint_and_names_the_folder(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make_state(5))

    def refuse(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(UserError, match=r"cannot save step 10: No space left on device.*resume=auto"):
        save_checkpoint(tmp_path, make_state(10))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000005"]
    assert load_checkpoint(tmp_path).state.step == 5


def test_a_newer_format_is_refused_not_passed_over(tmp_path):
    save_checkpoint(tmp_path, make_state(5))
    path = save_checkpoint(tmp_path, make_state(10)) / "state.json"
    from dinodomain import lineage

    body = json.loads(path.read_text())
    body.pop("digest")
    body["format"] = FORMAT + 1
    lineage.write_json(path, {**body, "digest": lineage.digest(body)})
    with pytest.raises(UserError, match=rf"is format {FORMAT + 1}.*newer dinodomain"):
        load_checkpoint(tmp_path)


def test_migrations_run_one_version_at_a_time():
    steps = {1: lambda body: {**body, "a": 1}, 2: lambda body: {**body, "b": body["a"] + 1}}
    assert migrate({"format": 1}, "x", target=3, steps=steps) == {"format": 3, "a": 1, "b": 2}
    with pytest.raises(UserError, match="no usable format number"):
        migrate({"format": "one"}, "x")


def test_restoring_into_another_model_names_file_and_tensors():
    module = nn.Linear(3, 2)
    restore_module(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "f")
    assert torch.equal(module.weight, torch.ones(2, 3))
    with pytest.raises(
        UserError, match=r"student\.safetensors: lacks 'bias'; has unknown 'bais'; 'weight' is \(2, 4\), the model has \(2, 3\)"
    ):
        restore_module(module, {"weight": torch.ones(2, 4), "bais": torch.zeros(2)}, "student.safetensors")


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_ten_steps_equal_five_saved_loaded_and_five_more(tmp_path, fused):
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        groups = [{"params": list(module[1].parameters())}, {"params": list(module[0].parameters()), "weight_decay": 0.1}]
        return module, torch.optim.AdamW(groups, lr=0.01, fused=fused)

    straight, optimizer = make()
    train(straight, optimizer, range(10))
    first, optimizer = make()
    train(first, optimizer, range(5))
    save_checkpoint(tmp_path, TrainState(step=5, tensors={"student": first.state_dict(), "optimizer": optimizer_tensors(optimizer, first)}))
    state = load_checkpoint(tmp_path).state
    second, optimizer = make()
    restore_module(second, state.tensors["student"], "student")
    restore_optimizer(optimizer, second, state.tensors["optimizer"], "optimizer")
    train(second, optimizer, range(5, 10))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_optimiser_state_of_another_model_is_refused():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    with pytest.raises(UserError, match="unknown parameter 'other'"):
        restore_optimizer(optimizer, module, {"exp_avg/other": torch.zeros(2)}, "optimizer.safetensors")
    with pytest.raises(UserError, match=r"'exp_avg/weight' is \(2, 2\), the parameter has \(2, 3\)"):
        restore_optimizer(optimizer, module, {"exp_avg/weight": torch.zeros(2, 2)}, "optimizer.safetensors")


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    base = torch.arange(6.0)
    save_checkpoint(tmp_path, TrainState(step=1, tensors={"student": {"a": base, "b": base, "c": base[2:4]}}))
    tensors = load_file(tmp_path / "checkpoints" / "step-000001" / "student.safetensors")
    assert torch.equal(tensors["b"], base)
    assert torch.equal(tensors["c"], base[2:4])


@pytest.mark.parametrize("key", ["every", "keep"])
def test_a_plan_without_sense_is_refused_by_key(key):
    with pytest.raises(UserError, match=f"checkpoint.{key}: is 0"):
        CheckpointPlan(**{key: 0})


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"state\.json: is missing"):
        load_checkpoint(tmp_path / "nowhere")
