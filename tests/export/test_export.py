import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from dinodomain.checkpoint import load_backbone, save_backbone
from dinodomain.errors import UserError
from dinodomain.export import ExportPlan, export
from dinodomain.export.torch_export import Portable
from dinodomain.model import Backbone, ModelPlan
from dinodomain.types import Acquisition, Normalisation

pytestmark = pytest.mark.filterwarnings(
    # timm builds its own layers with a deprecated torch.jit annotation; nothing of ours.
    "ignore:`torch.jit.*:DeprecationWarning"
)


waived = partial(ExportPlan, waive_audit="a test; the suite")


def make_backbone(ndim: int, mode: str = "domain", **changes) -> Backbone:
    torch.manual_seed(0)
    norm = Normalisation(mode=mode, channels=("a", "b"), low=(-10.0, 0.0), high=(10.0, 2.0), mean=(0.5, 0.4), std=(0.2, 0.3))
    plan = ModelPlan(**{"dim": 48, "depth": 2, "heads": 4, "patch": 8, "layer_scale": 1.0, **changes})
    backbone = Backbone.create(plan, ndim=ndim, image_size=16, normalisation=norm, domain="made_up").eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


@pytest.fixture
def run(tmp_path: Path):
    def make(backbone: Backbone) -> Path:
        return save_backbone(tmp_path / "source" / "backbone.safetensors", backbone, history={"digest": "abc", "counts": {"units": 7}})

    return make


@pytest.mark.parametrize("changes", [{}, {"registers": 0}, {"layer_scale": 0.0}, {"class_position": True}, {"position": "sincos"}])
def test_timm_loads_the_folder_and_computes_the_same_tokens(tmp_path, run, changes):
    backbone = make_backbone(2, **changes)
    done = export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="timm"))
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 2, 16, 16)
    with torch.no_grad():
        ours = backbone(x)
        theirs = network.forward_features(x)
    torch.testing.assert_close(theirs[:, 0], ours.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs[:, 1 + backbone.vit.plan.registers :], ours.patches, atol=1e-5, rtol=1e-5)
    assert done.max_abs_diff < 1e-5


def test_the_lineage_of_the_checkpoint_travels_with_every_format(tmp_path, run):
    source = run(make_backbone(2))
    for form in ("timm", "safetensors", "torch_export"):
        export(waived(checkpoint=str(source), out=str(tmp_path / form), format=form))
        record = json.loads((tmp_path / form / "lineage.json").read_text())
        assert record["parents"] == {"checkpoint": "abc"}
        assert record["counts"] == {"units": 7}
        assert "units: 7" in (tmp_path / form / "README.md").read_text()
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["dinodomain"]["lineage"] == json.loads(
        (tmp_path / "timm" / "lineage.json").read_text()
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_traced_program_takes_channel_units_and_runs_without_this_package(tmp_path, run, ndim):
    backbone = make_backbone(ndim)
    export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="torch_export"))
    x = torch.rand(5, 2, *[16] * ndim) * 4 - 1
    torch.save({"x": x}, tmp_path / "x.pt")
    script = (
        "import sys, torch; sys.modules['dinodomain'] = None\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r}, weights_only=True)['x']\n"
        f"cls, registers, patches = torch.export.load({str(tmp_path / 'out' / 'backbone.pt2')!r}).module()(x)\n"
        f"torch.save({{'cls': cls.detach(), 'patches': patches.detach()}}, {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    low, high = torch.tensor([-10.0, 0.0]), torch.tensor([10.0, 2.0])
    mean, std = torch.tensor([0.5, 0.4]), torch.tensor([0.2, 0.3])
    by_channel = (1, 2) + (1,) * ndim
    unit = ((x - low.reshape(by_channel)) / (high - low).reshape(by_channel)).clamp(0, 1)
    with torch.no_grad():
        ours = backbone((unit - mean.reshape(by_channel)) / std.reshape(by_channel))
    torch.testing.assert_close(found["cls"], ours.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["patches"], ours.patches, atol=1e-5, rtol=1e-5)


def test_a_backbone_normalised_by_its_sources_takes_unit_range_values():
    portable = Portable(make_backbone(2, mode="source"))
    x = torch.tensor([0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 2, 2).expand(1, 2, 2, 2)
    expected = (x.clamp(0, 1) - torch.tensor([0.5, 0.4]).reshape(1, 2, 1, 1)) / torch.tensor([0.2, 0.3]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(portable.normalise(x), expected)


def windowed(ndim: int) -> Backbone:
    """Two windows of channel b and all of channel a."""
    torch.manual_seed(0)
    norm = Normalisation(
        mode="domain", channels=("b/soft", "b/bone", "a"), sources=("b", "b", "a"), low=(-160.0, -500.0, 0.0), high=(240.0, 1300.0, 2.0),
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), units=("HU", "HU", "1"),
    )  # fmt: skip
    plan = ModelPlan(dim=48, depth=2, heads=4, patch=8)
    return Backbone.create(plan, ndim=ndim, image_size=16, normalisation=norm, domain="made_up").eval()


@pytest.mark.parametrize("form", ["timm", "safetensors", "torch_export"])
def test_whoever_exports_and_whoever_reads_the_card_is_told_of_windows(tmp_path, run, form):
    done = export(waived(checkpoint=str(run(windowed(2))), out=str(tmp_path / "out"), format=form))
    lines = ("b/soft: window of b, centre 40 HU, width 400 HU", "b/bone: window of b, centre 400 HU, width 1800 HU")
    assert done.windows == lines
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in done.text() and line in card for line in lines)
    assert list(lines) == done.as_json()["windows"]
    assert "| b/bone | b | HU | -500 | 1300 | 0.4 | 0.3 |" in card
    assert ("takes the stored channels (b, a)" in card) == (form == "torch_export")


def test_a_card_without_windows_does_not_speak_of_them_and_names_units_where_known(tmp_path, run):
    done = export(waived(checkpoint=str(run(make_backbone(2))), out=str(tmp_path / "out"), format="safetensors"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (done.windows, "display window" in card, "display window" in done.text()) == ((), False, False)
    assert "| a | a | not recorded | -10 | 10 | 0.5 | 0.2 |" in card


def test_the_timm_config_says_what_each_channel_is(tmp_path, run):
    export(waived(checkpoint=str(run(windowed(2))), out=str(tmp_path / "out"), format="timm"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"]["in_chans"] == 3
    assert config["dinodomain"]["input"][0] == {
        "name": "b/soft", "source": "b", "unit": "HU", "low": -160.0, "high": 240.0, "mean": 0.5, "std": 0.2, "centre": 40.0,
        "width": 400.0,
    }  # fmt: skip
    assert "centre" not in config["dinodomain"]["input"][2]


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_traced_program_cuts_windows_out_of_the_stored_channels(tmp_path, run, ndim):
    backbone = windowed(ndim)
    done = export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="torch_export"))
    assert done.max_abs_diff < 1e-5
    x = torch.stack([torch.linspace(-1200, 2000, 16**ndim), torch.linspace(-1, 3, 16**ndim)]).reshape(1, 2, *[16] * ndim)
    by_hand = torch.stack([
        (((x[0, 0] + 160) / 400).clamp(0, 1) - 0.5) / 0.2, (((x[0, 0] + 500) / 1800).clamp(0, 1) - 0.4) / 0.3,
        ((x[0, 1] / 2).clamp(0, 1) - 0.3) / 0.4,
    ])[None]  # fmt: skip
    with torch.no_grad():
        cls, _, patches = torch.export.load(tmp_path / "out" / "backbone.pt2").module()(x)
        ours = backbone(by_hand)
    torch.testing.assert_close(cls, ours.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patches, ours.patches, atol=1e-5, rtol=1e-5)
    extra = {"dinodomain.json": ""}
    torch.export.load(tmp_path / "out" / "backbone.pt2", extra_files=extra)
    assert json.loads(extra["dinodomain.json"])["takes"] == ["b", "a"]


def test_our_own_file_comes_back_bit_equal(tmp_path, run):
    backbone = make_backbone(3)
    export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="safetensors"))
    again = load_backbone(tmp_path / "out")
    assert again.spec == backbone.spec
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_volumes_are_refused_for_timm_with_the_formats_that_fit(tmp_path, run):
    with pytest.raises(UserError, match=r"timm has no transformer for volumes.*torch_export"):
        export(waived(checkpoint=str(run(make_backbone(3))), out=str(tmp_path / "out"), format="timm"))
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_with_files_is_left_alone_unless_told(tmp_path, run):
    source = str(run(make_backbone(2)))
    out = tmp_path / "out"
    export(waived(checkpoint=source, out=str(out), format="safetensors"))
    with pytest.raises(UserError, match=r"already holds an export.*overwrite"):
        export(waived(checkpoint=source, out=str(out)))
    export(waived(checkpoint=source, out=str(out), overwrite=True))
    assert "cls_token" in safetensors.torch.load_file(out / "model.safetensors")
    assert not (out / "backbone.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_export_wrote_are_never_replaced(tmp_path, run, overwrite):
    source, out = str(run(make_backbone(2))), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"holds what no export wrote: mine\.txt"):
        export(waived(checkpoint=source, out=str(out), overwrite=overwrite))
    assert (out / "mine.txt").read_text() == "keep"


def test_the_folder_at_hand_can_be_exported_into(tmp_path, run, monkeypatch):
    source = str(run(make_backbone(2)))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(waived(checkpoint=source, out=".", format="safetensors"))
    assert (tmp_path / "here" / "backbone.safetensors").is_file()


ROPE = {"position": "rope", "rope_rescale": 2.0, "rope_jitter": 1.2}


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp": "swiglu"},
        {"mlp": "swiglu", "mlp_ratio": 2.66667, "dim": 60, "position": "sincos"},
        {"patch": (4, 8)},
        ROPE,
        {**ROPE, "mlp": "swiglu", "registers": 0, "patch": (8, 4)},
        {**ROPE, "layer_scale": 0.0, "rope_base": 30.0, "norm_eps": 1e-5},
    ],
)
def test_timm_computes_the_same_of_gated_mlps_rotary_positions_and_long_patches(tmp_path, run, changes):
    backbone = make_backbone(2, **changes)
    done = export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="timm"))
    assert done.max_abs_diff < 2e-5
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 2, 32, 16)
    with torch.no_grad():
        ours, theirs = backbone(x), network.forward_features(x)
    torch.testing.assert_close(theirs[:, 0], ours.cls, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(theirs[:, 1 + backbone.vit.plan.registers :], ours.patches, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"position": "rope", "rope_unit": "physical", "rope_length": 9.0}, r"model\.rope_unit=physical"),
        ({"position": "rope", "rope_unit": "patch"}, r"model\.rope_unit=patch"),
        ({"position": "rope", "dim": 56}, r"heads of a multiple of 4 channels, this backbone has 14"),
        ({"channels": "wavelength"}, r"model\.channels=wavelength"),
        ({"norm_eps": 1e-5}, r"norms add 1e-05 \(model\.norm_eps\)"),
    ],
)
def test_what_timm_cannot_compute_is_refused_by_the_key_that_asks_for_it(tmp_path, run, changes, key):
    with pytest.raises(UserError, match=rf"{key}.*allowed: torch_export or safetensors"):
        export(waived(checkpoint=str(run(make_backbone(2, **changes))), out=str(tmp_path / "out"), format="timm"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ndim", "patch", "unit"), [(2, 8, "crop"), (3, (4, 8, 8), "patch")])
def test_a_traced_program_of_rotary_positions_computes_the_same(tmp_path, run, ndim, patch, unit):
    backbone = make_backbone(ndim, patch=patch, position="rope", rope_unit=unit, mlp="swiglu")
    done = export(waived(checkpoint=str(run(backbone)), out=str(tmp_path / "out"), format="torch_export"))
    assert done.max_abs_diff < 2e-5


def test_a_traced_program_in_physical_units_takes_the_spacing_too(tmp_path, run):
    backbone = make_backbone(2, position="rope", rope_unit="physical", rope_length=9.0)
    source = str(run(backbone))
    done = export(waived(checkpoint=source, out=str(tmp_path / "out"), format="torch_export"))
    assert done.max_abs_diff < 2e-5
    program = torch.export.load(tmp_path / "out" / "backbone.pt2").module()
    x, spacing = torch.rand(2, 2, 16, 16), torch.tensor([[1.0, 2.0], [0.5, 0.5]])
    with torch.no_grad():
        ours = backbone(Portable(backbone).normalise(x), about=Acquisition(spacing=spacing))
        torch.testing.assert_close(program(x, spacing)[0], ours.cls, atol=1e-5, rtol=1e-5)
        assert (program(x, 2 * spacing)[0] - ours.cls).abs().max() > 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "rotary positions in mm or m (base 100)" in card
    assert "the pixel size of every image" in card
    assert export(waived(checkpoint=source, out=str(tmp_path / "own"), format="safetensors")).max_abs_diff == 0
