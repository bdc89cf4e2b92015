"""YAML from a stranger: URLs and cycles in _BASE_, aliases that expand, keys that stand twice, deep nesting."""

import time

import pytest
import yaml
from detectron2.config import CfgNode

from gn_det.checkpoint.safetensors_io import write_safetensors
from gn_det.config.files import load_config, parse_config
from gn_det.config.yaml_files import parse_yaml, read_config_file
from gn_det.evaluation.run_folder import read_config
from helpers.errors import error_sentence


def expanding(levels: int) -> str:
    """Return YAML in which each level repeats the level below ten times."""
    lines = ["k0: &k0 {x: 1}"]
    for level in range(1, levels + 1):
        lines.append(f"k{level}: &k{level} {{" + ", ".join(f"a{i}: *k{level - 1}" for i in range(10)) + "}")
    return "\n".join(lines)


REFUSED = {
    "aliases that expand": (expanding(6), "has more than 20000 values"),
    "merge keys that expand": (
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)),
        "has more than 20000 values",
    ),
    "an alias that contains itself": ("a: &a [*a]", "line 1 is not a plain YAML config: an alias contains itself"),
    "long chain of aliases": (
        "k0: &k0 {x: 1}\n" + "\n".join(f"k{i}: &k{i} {{a: *k{i - 1}}}" for i in range(1, 60)),
        "nested too deeply",
    ),
    "deep lists": ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
    "very deep lists": ("[" * 100_000, "nested too deeply"),
    "deep sections": ("\n".join(" " * i + "a:" for i in range(100)), "nested too deeply"),
    "a large file": ("# " + "x" * 300_000, "has more than 262144 characters"),
    "a key twice": ("SOLVER:\n  MAX_ITER: 1\n  MAX_ITER: 2\n", "line 3 has the key MAX_ITER twice"),
    "a section twice": ("MODEL: {}\nSEED: 1\nMODEL: {}\n", "line 3 has the key MODEL twice"),
    "a day that does not exist": ("SEED: 2026-99-99", "is not a plain YAML config: month must be in 1..12"),
    "a very long number": ("SEED: " + "9" * 5000, "is not a plain YAML config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_yaml_is_refused_quickly_and_named(case, write_file):
    text, problem = REFUSED[case]
    path, start = write_file("a.yaml", text), time.perf_counter()
    child = write_file("child.yaml", "_BASE_: a.yaml\n")
    for sentence in (
        error_sentence(load_config, path),
        error_sentence(load_config, child),  # the sentence names the file that has the problem
        error_sentence(parse_config, text, path),
    ):
        assert sentence.startswith(path) and problem in sentence
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("case", ["aliases that expand", "a key twice", "deep lists"])
def test_configs_of_run_folders_and_checkpoints_are_bounded(case, write_file, tmp_path):
    from gn_det.prediction.trained import find_trained

    text, problem = REFUSED[case]
    write_file("config.yaml", text)
    assert problem in error_sentence(read_config, tmp_path)
    write_safetensors(tmp_path / "a.safetensors", {}, {"config": text})
    assert problem in error_sentence(find_trained, str(tmp_path / "a.safetensors"))


def test_aliases_of_a_run_are_accepted():
    """PyYAML writes aliases where a config holds one tuple twice, as detectron2's defaults do."""
    text = load_config("mask_rcnn_R50_FPN_gn").dump()
    assert "&id001" in text
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert yaml.safe_load(parse_config(text, "x").dump()) == yaml.safe_load(text)


def test_loaded_configs_are_configs_of_detectron2():
    cfg = load_config("mask_rcnn_R50_FPN_gn")
    assert type(cfg) is type(cfg.MODEL) is CfgNode


# ---- _BASE_


@pytest.mark.parametrize(
    "url", ["http://{host}/a/../../..{path}", "https://h/a.yaml", "ftp://h/a.yaml", "file:///a.yaml"]
)
@pytest.mark.parametrize("form", ["_BASE_: '{}'", "_BASE_: ['{}']", "_BASE_: [b.yaml, '{}']"])
def test_url_as_base_is_refused_and_not_requested(url, form, server, write_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    host = server.root.removeprefix("http://")
    url = url.format(host=host, path=tmp_path / "written.yaml")
    write_file("b.yaml", "SEED: 1\n")
    write_file("config.yaml", form.format(url))
    before = sorted(tmp_path.iterdir())
    sentence = error_sentence(read_config, tmp_path)
    assert sentence.startswith(f"{tmp_path / 'config.yaml'}: its _BASE_ is the URL {url}, ")
    assert not server.requests and sorted(tmp_path.iterdir()) == before


def test_base_in_the_config_of_a_checkpoint_is_refused():
    assert "_BASE_" in error_sentence(parse_config, "_BASE_: http://h/a.yaml", "The config in x.pth")


@pytest.mark.parametrize("value", ["", "5", "{a: 1}", "[[a.yaml]]", "['']"])
def test_base_that_is_not_a_path(value, write_file):
    path = write_file("a.yaml", f"_BASE_: {value}\n")
    assert "which is not the path of a file" in error_sentence(load_config, path)


def test_base_that_is_a_device_is_not_read(write_file):
    path = write_file("a.yaml", "_BASE_: /dev/zero\n")
    assert error_sentence(load_config, path) == f"{path}: its _BASE_ /dev/zero is not a file."


def test_problem_in_a_base_names_the_base(write_file, tmp_path):
    path = write_file("a.yaml", "_BASE_: base.yaml\n")
    base = write_file("base.yaml", "SEED: !!python/name:os.system\n")
    assert error_sentence(load_config, path).startswith(f"{base}, line 1 is not a plain YAML config: ")
    write_file("base.yaml", "just words")
    assert error_sentence(load_config, path).startswith(f"{base}: this is not a config")


def test_bases_that_multiply_are_bounded(write_file):
    """Each file names the next one twice: 2**20 files would be read."""
    for number in range(20):
        write_file(f"{number}.yaml", f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]\n")
    path = write_file("20.yaml", "SEED: 1\n")
    assert "has more than 50 _BASE_ files" in error_sentence(load_config, path.replace("20.yaml", "0.yaml"))


def test_later_bases_and_the_file_itself_take_precedence(write_file):
    write_file("first.yaml", "SEED: 1\nSOLVER: {MAX_ITER: 1, BASE_LR: 0.1, GAMMA: 0.5}\n")
    write_file("second.yaml", "SOLVER: {MAX_ITER: 2, BASE_LR: 0.2}\n")
    path = write_file("a.yaml", "_BASE_: [first.yaml, second.yaml]\nSOLVER: {MAX_ITER: 3}\n")
    assert read_config_file(path) == {"SEED": 1, "SOLVER": {"MAX_ITER": 3, "BASE_LR": 0.2, "GAMMA": 0.5}}


def test_section_over_a_value_of_its_base(write_file):
    write_file("base.yaml", "SOLVER: 1\n")
    path = write_file("a.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 3}\n")
    assert error_sentence(load_config, path) == f"{path}: SOLVER is a section, but a value in its _BASE_."


def test_config_of_an_older_version_is_upgraded(write_file):
    path = write_file("a.yaml", "VERSION: 1\nMODEL: {WEIGHT: a.pkl}\n")
    assert load_config(path).MODEL.WEIGHTS == "a.pkl"


# ---- other values


def test_deeply_nested_value_on_the_command_line():
    sentence = error_sentence(load_config, "mask_rcnn_R50_FPN_gn", ["OUTPUT_DIR", "-" * 20_000 + "1"])
    assert sentence == "the command line: a value is nested too deeply."
    lists = "[" * 500  # not a Python value, therefore text
    assert lists == load_config("mask_rcnn_R50_FPN_gn", ["OUTPUT_DIR", lists]).OUTPUT_DIR


def test_output_dir_must_be_local():
    sentence = error_sentence(load_config, "mask_rcnn_R50_FPN_gn", ["OUTPUT_DIR", "http://h/out"])
    assert sentence == "OUTPUT_DIR is http://h/out, but must be a local folder."
