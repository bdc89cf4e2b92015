"""Draw instances on images; define the colors of figures and save figures."""
