"""Config keys and defaults, config files, and checks that refuse configs that cannot work."""

from .checks import check_config  # noqa: F401
from .defaults import KEYS, add_gn_det_config, get_cfg  # noqa: F401
from .files import config_dir, find_config, load_config, parse_config, shipped_configs  # noqa: F401
