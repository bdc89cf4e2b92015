"""Finding and loading configs, and the error sentences for mistakes in them."""

import pytest

from gn_det.config.files import config_dir, find_config, load_config, shipped_configs
from helpers.errors import error_sentence

SHIPPED = shipped_configs()
GN_FPN = "mask_rcnn_R50_FPN_gn"


# ---- finding the file


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_found_by_path_and_by_name(name, monkeypatch, tmp_path):
    file = SHIPPED[name]
    monkeypatch.chdir(tmp_path)
    relative = str(file.relative_to(config_dir().parent))
    for spelling in (str(file), name, f"{name}.yaml", f"configs/{name}.yaml", relative):
        assert find_config(spelling).samefile(file)
        cfg = load_config(spelling)
        assert name == cfg.MODEL.GN.CONFIG
        assert cfg == load_config(str(file))


def test_file_in_the_current_folder_has_priority_over_a_shipped_config(write_file, monkeypatch, tmp_path):
    write_file(f"{GN_FPN}.yaml", "SOLVER: {MAX_ITER: 7}")
    monkeypatch.chdir(tmp_path)
    assert load_config(f"{GN_FPN}.yaml").SOLVER.MAX_ITER == 7


def test_file_may_have_a_shipped_config_as_base(write_file):
    path = write_file("my_config.yaml", f"_BASE_: {config_dir()}/{GN_FPN}.yaml\nSOLVER: {{MAX_ITER: 7}}")
    cfg = load_config(path, ["SOLVER.BASE_LR", "0.5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.MODEL.RESNETS.NORM) == (7, 0.5, "GN")
    assert cfg.MODEL.GN.CONFIG == "my_config"


def test_config_of_a_run_keeps_its_name(write_file):
    path = write_file("config.yaml", load_config(GN_FPN).dump())
    assert load_config(path).MODEL.GN.CONFIG == GN_FPN


@pytest.mark.parametrize("name", ["mask_rcnn_R50_FPN_ng", "mask_rcnn_R50_FPN_gm.yaml", "configs/mask_rcnn_R50_FPN_gnn"])
def test_unknown_name_is_reported_with_the_nearest_name(name):
    assert error_sentence(load_config, name).startswith(f"There is no config {name}; did you mean {GN_FPN}")


def test_nearest_name_may_be_in_a_sub_folder():
    hint = "did you mean detectron2_mask_rcnn_R50_FPN_gn_3x"
    assert hint in error_sentence(load_config, "detectron2_mask_rcnn_R50_FPN_gn_3")


@pytest.mark.parametrize("name", ["nothing/like/it.yaml", "configs", "zzz", "elsewhere/" + GN_FPN])
def test_unknown_name_without_a_similar_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert f"There is no config {name}" in error_sentence(load_config, name)


@pytest.mark.parametrize("name", ["", ".", "/", "~nobody-of-this-name/x.yaml"])
def test_names_that_cannot_be_a_file(name):
    assert "There is no config" in error_sentence(load_config, name)


# ---- reading the file and the overrides


def test_unknown_key_in_a_file(write_file):
    path = write_file("a.yaml", "MODEL: {GN: {NUM_GROUP: 16}}")
    sentence = error_sentence(load_config, path)
    assert sentence == f"{path}: there is no config key MODEL.GN.NUM_GROUP (did you mean 'MODEL.GN.NUM_GROUPS'?)."


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("MODEL.RESNETS.NROM", "MODEL.RESNETS.NORM"),
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("model.gn.eps", "MODEL.GN.EPS"),
        ("MODEL.GN.NUM_GROUP", "MODEL.GN.NUM_GROUPS"),
    ],
)
def test_unknown_key_on_the_command_line(key, meant):
    sentence = error_sentence(load_config, GN_FPN, [key, "1"])
    assert sentence == f"the command line: there is no config key {key} (did you mean {meant!r}?)."


def test_unknown_section_is_reported_with_the_nearest_section(write_file):
    path = write_file("a.yaml", "MODLE: {GN: {NUM_GROUPS: 16}}")
    assert error_sentence(load_config, path) == f"{path}: there is no config key MODLE (did you mean 'MODEL'?)."


def test_unknown_key_without_a_similar_key():
    sentence = error_sentence(load_config, GN_FPN, ["QQQQQQQQ", "1"])
    assert sentence == "the command line: there is no config key QQQQQQQQ."


@pytest.mark.parametrize("key", ["MODEL.MASK_ON.X", "SOLVER.BASE_LR.X", "MODEL.WEIGHTS.X"])
def test_key_below_a_value_is_unknown(key):
    assert f"there is no config key {key}" in error_sentence(load_config, GN_FPN, [key, "1"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BASE_LR", "fast", "SOLVER.BASE_LR takes a value of type float, not the str fast."),
        ("SOLVER.BASE_LR", "1", "SOLVER.BASE_LR takes a value of type float, not the int 1 (write 1.0)."),
        ("MODEL.GN.NUM_GROUPS", "1.5", "MODEL.GN.NUM_GROUPS takes a value of type int, not the float 1.5."),
        ("MODEL.RESNETS.NORM", "32", "MODEL.RESNETS.NORM takes a value of type str, not the int 32."),
        ("MODEL.MASK_ON", "yes", "MODEL.MASK_ON takes a value of type bool, not the str yes."),
    ],
)
def test_value_of_the_wrong_type(key, value, expected, write_file):
    assert error_sentence(load_config, GN_FPN, [key, value]) == f"the command line: {expected}"
    section, name = key.rsplit(".", 1)
    text = f"{section.replace('.', ': {')}: {{{name}: '{value}'" + "}" * (section.count(".") + 1)
    path = write_file("a.yaml", text)
    assert error_sentence(load_config, path) == f"{path}: {expected}"


def test_value_for_a_section(write_file):
    """The sentence does not contain the whole section, unlike the message of yacs."""
    for sentence in (
        error_sentence(load_config, GN_FPN, ["MODEL.GN", "32"]),
        error_sentence(load_config, write_file("a.yaml", "MODEL: {GN: 32}")),
    ):
        assert "MODEL.GN" in sentence
        assert "<class" not in sentence


def test_section_for_a_value(write_file):
    sentence = error_sentence(load_config, write_file("a.yaml", "SOLVER: {BASE_LR: {A: 1}}"))
    assert "SOLVER.BASE_LR" in sentence
    assert "<class" not in sentence


def test_odd_number_of_overrides():
    sentence = error_sentence(load_config, GN_FPN, ["SOLVER.BASE_LR", "0.1", "SEED"])
    assert sentence == "The overrides on the command line are KEY VALUE pairs, but 'SEED' has no value."


def test_option_after_the_overrides():
    sentence = error_sentence(load_config, GN_FPN, ["--eval-only", "SEED"])
    assert sentence == "the command line: the option --eval-only must come before the KEY VALUE pairs."


@pytest.mark.parametrize("value", ["1e-3", "0.001"])
def test_numbers_may_have_an_exponent(value, write_file):
    assert load_config(GN_FPN, ["MODEL.GN.EPS", value]).MODEL.GN.EPS == 1e-3
    assert load_config(write_file("a.yaml", f"MODEL: {{GN: {{EPS: {value}}}}}")).MODEL.GN.EPS == 1e-3


@pytest.mark.parametrize("text", ["", "# a comment alone\n", "5\n", "MODEL:\n"])
def test_file_without_keys(text, write_file):
    path = write_file("a.yaml", text)
    assert error_sentence(load_config, path) == f"{path}: this is not a config; a config consists of KEY: VALUE lines."


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_yaml_that_is_no_config(text, write_file):
    path = write_file("a.yaml", text)
    assert error_sentence(load_config, path) == f"{path}: this is not a config; a config consists of KEY: VALUE lines."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("MODEL:\n  GN:\n    EPS: [1\n  FPN: 3\n", 4),
        ("MODEL:\n\tMASK_ON: True\n", 2),
        ("MODEL:\n  MASK_ON: True\n BACKBONE: 1\n", 3),
        ("SEED: 1\nMODEL: {A: 'x\n", 3),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(text, line, write_file):
    path = write_file("a.yaml", text)
    assert error_sentence(load_config, path).startswith(f"{path}, line {line} is not a plain YAML config: ")


@pytest.mark.parametrize("content", [b"MODEL:\0\n", b"# \xff\xfe\nMODEL: {}\n"])
def test_file_that_is_not_text(content, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert str(path) in error_sentence(load_config, str(path))


@pytest.mark.parametrize("file", ["a.yaml", "base.yaml"])
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
    ],
)
def test_python_tags_in_yaml_do_not_run(file, value, write_file, tmp_path):
    marker = tmp_path / "marker"
    write_file("a.yaml", "_BASE_: base.yaml\n")
    write_file("base.yaml", "SEED: 1\n")
    write_file(file, "SEED: 1\nOUTPUT_DIR: " + value.format(marker=marker))
    sentence = error_sentence(load_config, str(tmp_path / "a.yaml"))
    assert ", line 2 is not a plain YAML config: " in sentence
    assert "python/" in sentence
    assert not marker.exists()


def test_python_code_on_the_command_line_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    text = f"__import__('pathlib').Path('{marker}').touch()"
    assert text == load_config(GN_FPN, ["OUTPUT_DIR", text]).OUTPUT_DIR
    assert not marker.exists()


@pytest.mark.parametrize("base", ["nowhere.yaml", "/nowhere/nowhere.yaml", "[nowhere.yaml]"])
def test_missing_base(base, write_file, tmp_path):
    path = write_file("a.yaml", f"_BASE_: {base}\n")
    missing = tmp_path / base.strip("[]")  # an absolute path does not change
    assert error_sentence(load_config, path) == f"{path}: its _BASE_ {missing} does not exist."


def test_cycle_of_bases(write_file):
    write_file("b.yaml", "_BASE_: a.yaml\n")
    path = write_file("a.yaml", "_BASE_: b.yaml\n")
    assert "its _BASE_ files form a cycle." in error_sentence(load_config, path)


def test_base_that_is_a_folder(write_file, tmp_path):
    path = write_file("a.yaml", f"_BASE_: {tmp_path}\n")
    assert str(tmp_path) in error_sentence(load_config, path)
