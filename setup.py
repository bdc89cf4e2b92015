from setuptools import setup

# The configs lie at the top of the checkout, as detectron2's do, and are installed as gn_det/configs.
setup(
    packages=["gn_det", "gn_det.benchmark", "gn_det.checkpoint", "gn_det.configs", "gn_det.ops", "gn_det.report"],
    package_dir={"gn_det.configs": "configs"},
    package_data={
        "gn_det": ["*.json"],
        "gn_det.configs": ["*.yaml", "*/*.yaml"],
        "gn_det.report": ["*.html", "*.css"],
    },
)
