import pytest


@pytest.fixture
def write_file(tmp_path):
    """Function of (file name, text): writes the file and returns its path as a string."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write
