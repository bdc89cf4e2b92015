"""A built model made faster or smaller in place, and the device that it runs on."""
