import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dinodomain import cli, config
from dinodomain.errors import Problems, UserError
from dinodomain.verbs import VERBS


def plan_of(*words: str):
    return cli.make_plan(cli.find_verb(words[0]), cli.split_words(words[1:]))


PRETRAIN = ("pretrain", "domain=ct", "store=s", "out=o")


def test_paths_are_taken_letter_for_letter():
    hard = "/data/scan (1)/a,b={c}[d]'\"$x: ü"
    plan = plan_of("pretrain", "domain=ct", f"store={hard}", "out=s3://b/k=1")
    assert plan.store == hard
    assert plan.out == "s3://b/k=1"
    assert plan_of("ingest", "domain=ct", "source=torchgeo:X?root=/y", "store=a").source == "torchgeo:X?root=/y"


def test_command_line_wins_over_user_yaml_over_recipe_over_default(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("views: {num_local: 5, local_size: 8}\nengine: {steps: 7}\n")
    assert plan_of(*PRETRAIN).views.num_local == 8
    assert plan_of(*PRETRAIN, "recipe=tiny").views.num_local == 4
    plan = plan_of(*PRETRAIN, "recipe=tiny", f"config={file}", "engine.steps=3")
    assert (plan.views.num_local, plan.views.local_size, plan.engine.steps, plan.model.dim) == (5, 8, 3, 96)


def test_a_group_on_the_command_line_wins_over_the_recipe():
    plan = plan_of(*PRETRAIN, "recipe=tiny", "model=vit_small")
    assert (plan.model.dim, plan.model.patch, plan.objective.prototypes) == (384, 16, 1024)


def test_a_policy_is_changed_from_the_command_line_a_file_and_a_mapping(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("views:\n  policy: {flip: {AP: 0.3}, gamma: null, haze: {amount: [0, 0.1]}}\n")
    words = ("views.policy.flip=[AP]", "views.policy.haze=null", "views.policy.gamma.exponent=[0.9,1.1]")
    for verb in (PRETRAIN, ("views", "store=s", "out=o")):
        assert plan_of(*verb, *words).views.policy == {"flip": ["AP"], "haze": None, "gamma": {"exponent": [0.9, 1.1]}}
        assert plan_of(*verb, "views.policy={flip:[AP],haze:null}").views.policy == {"flip": ["AP"], "haze": None}
        assert plan_of(*verb, f"config={file}").views.policy == {"flip": {"AP": 0.3}, "gamma": None, "haze": {"amount": [0, 0.1]}}
        joined = plan_of(*verb, f"config={file}", "views.policy.flip=[IS]", "views.policy.gamma.exponent=[1,2]").views.policy
        assert joined == {"flip": ["IS"], "gamma": {"exponent": [1, 2]}, "haze": {"amount": [0, 0.1]}}
    with pytest.raises(Problems, match=r"views\.policy\.flpi: unknown key; did you mean 'flip'\?\nengine\.stesp: unknown key"):
        plan_of(*PRETRAIN, "views.policy.flpi=[AP]", "engine.stesp=3")


def test_a_user_file_may_refer_to_its_own_and_other_keys(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 5\nviews: {num_local: '${seed}', local_size: '${engine.steps}'}\n")
    plan = plan_of(*PRETRAIN, f"config={file}", "engine.steps=3")
    assert (plan.views.num_local, plan.views.local_size) == (5, 3)


def test_a_group_counts_only_where_the_verb_offers_it():
    assert plan_of("views", "store=s", "out=o", "views=image_32", "views.num_local=3").views.global_size == 32
    with pytest.raises(UserError, match="recipe: is no key of probe; allowed: config groups of probe: none"):
        plan_of("probe", "checkpoint=c", "store=s", "labels=l", "target=t", "recipe=tiny")


def test_outside_groups_are_found_in_configs_dir(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "ours.yaml").write_text("# @package _global_\nrecipe: ours\nengine: {steps: 11}\n")
    plan = plan_of(*PRETRAIN, "recipe=ours", f"configs_dir={tmp_path}")
    assert (plan.recipe, plan.engine.steps) == ("ours", 11)


def test_a_misspelt_key_is_refused_with_a_hint():
    with pytest.raises(Problems, match=r"engine.stesp: unknown key; did you mean 'engine.steps'\?"):
        plan_of(*PRETRAIN, "engine.stesp=3")
    with pytest.raises(Problems, match=r"ingest.inclde: unknown key; did you mean 'ingest.include'\?"):
        plan_of("ingest", "domain=ct", "source=a", "store=b", "ingest.inclde=[x]")


def test_a_grid_of_metres_and_the_name_of_a_band_may_look_like_numbers():
    plan = plan_of("ingest", "domain=mri", "source=a", "store=b", "ingest.grid=1", "ingest.bands=4", "ingest.stack=[T1,FLAIR]")
    assert (plan.grid, plan.bands, plan.stack) == ("1", ("4",), ("T1", "FLAIR"))
    assert plan_of("ingest", "domain=mri", "source=a", "store=b", "ingest.grid=1.5").grid == "1.5"


def test_store_names_a_folder_and_a_section_in_ingest():
    plan = plan_of("ingest", "domain=ct", "source=a", "store=b", "store.chunk=32", "ingest.workers=0")
    assert (plan.store, plan.storage.chunk, plan.workers) == ("b", 32, 0)


def test_a_misspelt_recipe_is_refused_with_a_hint():
    known = "auto, continue, dino, dinov2, dinov3, dinov3_gram, dinov3_highres, tiny"
    with pytest.raises(UserError, match=rf"recipe: 'tny' is not known; allowed: {known}; did you mean 'tiny'\?"):
        plan_of(*PRETRAIN, "recipe=tny")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "unknown command 'pretrian'.*did you mean 'pretrain'"),
        (["pretrain", "domain"], "'domain' is not key=value"),
        (["pretrain", "engine.steps=[1"], "command line: .*quote values"),
        (["pretrain", "store=a", "store=b"], "store: is given twice"),
        (["pretrain", "config=/nowhere.yaml"], "config: '/nowhere.yaml' cannot be read"),
    ],
)
def test_bad_input_exits_2_with_one_message_and_no_traceback(words, message, capsys):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_an_interruption_exits_130(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "kept" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EACCES])
def test_a_disk_that_refuses_exits_2_and_names_the_place(number, monkeypatch, capsys):
    def refused(words):
        raise OSError(number, os.strerror(number), "/mnt/archive/out")

    monkeypatch.setattr(cli, "_run", refused)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"/mnt/archive/out: {os.strerror(number)}; choose another folder, or free some space\n"


def test_a_failure_of_the_machine_is_no_fault_of_the_user(monkeypatch, capsys):
    def broken(words):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["doctor"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_what_rooms_log_goes_to_standard_error_and_the_logger_is_left_as_it_was(monkeypatch, capsys):
    logger = logging.getLogger("dinodomain")
    before = (logger.level, list(logger.handlers))

    def run(words):
        logging.getLogger("dinodomain.room").info("half way")
        return 0

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr() == ("", "half way\n")
    assert (logger.level, logger.handlers) == before


def test_a_bug_exits_3_with_its_traceback(monkeypatch, capsys):
    def broken(words):
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["doctor"]) == 3
    assert "boom" in capsys.readouterr().err


@pytest.mark.parametrize("name", VERBS)
def test_help_explains_every_key(name, capsys):
    assert cli.main([name, "--help"]) == 0
    keys = {VERBS[name].keys.to_user(key): entry for key, entry, _ in config.plan_keys(VERBS[name].plan_class())}
    text = capsys.readouterr().out
    for key, entry in keys.items():
        assert f"  {key}  [" in text
        assert entry.meaning, f"{key} has no meaning in its docstring"


def test_overview_lists_every_verb_and_no_other(capsys):
    assert cli.main([]) == 0
    assert set(re.findall(r"^  dinodomain (\w+)", capsys.readouterr().out, re.M)) == set(VERBS)


def test_json_goes_to_standard_output_alone(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]


@pytest.mark.parametrize(("world", "rank", "tells"), [("2", "0", True), ("2", "1", False), ("1", "1", True)])
def test_of_several_processes_the_first_tells_the_outcome(world, rank, tells, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["doctor"]) == 0
    assert bool(capsys.readouterr().out) == tells


@pytest.mark.parametrize("file", sorted(path.relative_to(config.config_dir()) for path in config.config_dir().rglob("*.yaml")), ids=str)
def test_every_yaml_builds(file: Path):
    group, name = str(file.parent), file.stem
    if group == ".":
        keys = {
            "pretrain": PRETRAIN[1:],
            "ingest": ("domain=ct", "source=a", "store=b"),
            "inspect": ("store=s",),
            "audit": ("checkpoint=c", "store=s", "out=o"),
        }
        required = [key for key, entry, _ in config.plan_keys(VERBS[name].plan_class()) if entry.default == "required"]
        words = keys.get(name) or tuple(f"{VERBS[name].keys.to_user(key)}=x" for key in required)
        assert plan_of(name, *words) is not None
    else:
        # The later stages of a recipe begin from the run before.
        stage = ("start.weights=run",) if name in ("dinov3_gram", "dinov3_highres") else ()
        assert plan_of(*PRETRAIN, f"{group}={name}", *stage) is not None


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "dinodomain.cli", "audit", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait()
    assert process.returncode == 0
