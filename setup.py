"""Build the package; pyproject.toml has everything but the configs.

The configs are in the root of the checkout, as detectron2's are. They are installed as gn_det/configs.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gn_det", "gn_det.*"]), "gn_det.configs"],
    package_dir={"gn_det.configs": "configs"},
    package_data={
        "gn_det": ["py.typed", "*/*.json", "*/*.html", "*/*.css"],
        "gn_det.configs": ["*.yaml", "*/*.yaml"],
    },
)
