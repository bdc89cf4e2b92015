"""Config keys and defaults, config files, and checks that refuse configs that cannot work."""

from .checks import check_config
from .defaults import KEYS, add_gn_det_config, get_cfg
from .files import config_dir, find_config, load_config, parse_config, shipped_configs

__all__ = [
    "KEYS",
    "add_gn_det_config",
    "check_config",
    "config_dir",
    "find_config",
    "get_cfg",
    "load_config",
    "parse_config",
    "shipped_configs",
]
