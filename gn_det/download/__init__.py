"""Downloads that are resumed, verified and cached."""
