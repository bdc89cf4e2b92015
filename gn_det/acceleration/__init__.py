"""In-place changes that make a built model faster or smaller, and the choice of its device."""
