"""The index of published weights (the model zoo), and the page that lists it."""
