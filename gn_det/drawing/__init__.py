"""Drawing of instances on images, and colors and saving of figures."""
