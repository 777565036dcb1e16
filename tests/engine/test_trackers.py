from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from dinodomain.engine.trackers import TensorBoardTracker, check_trackers, make_trackers
from dinodomain.errors import MissingExtra

PLAN = {"seed": 3, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, **{f"key{number}": number for number in range(120)}}


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package and notes what it is told."""
    module, told = ModuleType("wandb"), []
    run = SimpleNamespace(
        id="abc", log=lambda values, step=None: told.append(("log", values, step)), finish=lambda: told.append(("finish",))
    )

    def init(**keys):
        told.append(("init", keys))
        return run

    module.init, module.Image = init, lambda path: f"image {path}"
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


@pytest.fixture
def mlflow(monkeypatch):
    module, told = ModuleType("mlflow"), []
    for name in ("log_params", "log_metrics", "log_artifact", "log_dict", "end_run"):
        setattr(module, name, lambda *values, _name=name, **keys: told.append((_name, values, keys)))

    def start_run(**keys):
        told.append(("start_run", keys))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    module.start_run = start_run
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return told


def test_wandb_gets_plan_rows_and_figures_and_goes_on_in_its_run(tmp_path, wandb):
    (tracker,) = make_trackers(["wandb"], tmp_path, 0, PLAN)
    tracker.log(4, {"loss": 1.5})
    tracker.figures(5, [tmp_path / "loss.png"])
    tracker.close()
    assert wandb == [
        ("init", {"dir": str(tmp_path), "name": tmp_path.name, "config": PLAN, "id": None, "resume": None}),
        ("log", {"loss": 1.5}, 4),
        ("log", {"figures/loss": f"image {tmp_path / 'loss.png'}"}, None),
        ("finish",),
    ]
    wandb.clear()
    make_trackers(["wandb"], tmp_path, 5, PLAN)
    assert (wandb[0][1]["id"], wandb[0][1]["resume"]) == ("abc", "allow")


def test_mlflow_gets_parameters_within_its_limits_rows_and_figures(tmp_path, mlflow):
    (tracker,) = make_trackers(["mlflow"], tmp_path, 0, {**PLAN, "long": "x" * 900})
    tracker.log(4, {"loss": 1.5})
    tracker.figures(5, [tmp_path / "loss.png"])
    tracker.close()
    params = [values[0] for name, values, *_ in mlflow if name == "log_params"]
    assert [len(part) for part in params] == [100, 24]
    assert params[0]["optim.lr"] == "0.1"
    assert len(params[1]["long"]) == 500
    assert ("log_metrics", ({"loss": 1.5},), {"step": 4}) in mlflow
    assert ("log_artifact", (str(tmp_path / "loss.png"),), {"artifact_path": "figures"}) in mlflow
    assert mlflow[-1][0] == "end_run"
    mlflow.clear()
    make_trackers(["mlflow"], tmp_path, 5, PLAN)
    assert mlflow[0] == ("start_run", {"run_id": "r1"})
    assert not any(name == "log_params" for name, *_ in mlflow)


def test_a_service_that_fails_is_told_once_and_closed(tmp_path, caplog):
    class Away:
        calls = 0

        def begin(self, plan):
            pass

        def log(self, step, values):
            Away.calls += 1
            raise ConnectionError("no route")

        def figures(self, step, files):
            raise AssertionError("is not asked again")

        def close(self):
            Away.calls += 10

    (tracker,) = make_trackers([], tmp_path, 0, PLAN, [Away()])
    for step in range(3):
        tracker.log(step, {})
    tracker.figures(3, [])
    tracker.close()
    assert Away.calls == 11
    assert caplog.text.count("Away takes no more numbers of this run (ConnectionError: no route); metrics.jsonl has them all") == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_pip_line_and_the_way_without(monkeypatch, name):
    for module in [known for known in sys.modules if known.split(".")[0] == name or known == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{name} needs {name}: pip install {name}; or leave it out: engine\.trackers=\[\]"):
        check_trackers([name])


def test_tensorboard_files_hold_the_scalars(tmp_path):
    tracker = TensorBoardTracker(tmp_path, 0)
    tracker.begin({"seed": 1})
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0)]
