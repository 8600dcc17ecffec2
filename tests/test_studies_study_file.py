"""A study in a TOML file: what runs it asks for, and what is wrong with it."""

import pytest

from studies.lab.study_file import read_study_file
from studies.noise_ratio import NoiseRatioConfig

TEXT = """
[factors]
noise = ["symmetric", "asymmetric"]
seed = [0, 1]

[config]
data = "digits"
ratio = 0.4
width = 8
"""


def read(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return read_study_file(path, NoiseRatioConfig)


def test_every_combination_of_the_factors_is_a_run(tmp_path):
    configs = read(tmp_path, TEXT)
    expected = [("symmetric", 0), ("symmetric", 1), ("asymmetric", 0), ("asymmetric", 1)]
    assert [(c.noise, c.seed) for c in configs] == expected
    assert {(c.ratio, c.width, c.lr) for c in configs} == {(0.4, 8, 0.05)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[0, 1]", "[0, 1"), "is not TOML"),
        (("[config]", "[settings]"), r"the tables \[factors\] and \[config\]"),
        (("[0, 1]", "0"), "a list of levels"),
        (("[0, 1]", "[]"), "a list of levels"),
        (("ratio = 0.4", "ratio = 1.4"), "ratio: Input should be less than 1, but got 1.4"),
        (("ratio = 0.4", "rate = 0.4"), "rate"),
        (("ratio = 0.4", "seed = 4\nratio = 0.4"), "names seed in both"),
        (('data = "digits"', ""), "data: Field required"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, TEXT.replace(*change))
