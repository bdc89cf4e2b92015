"""detectron2's dataset mapper, which names the image file at which reading fails."""

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import GNDetError
from ..images import check_format, read_image


class Mapper(DatasetMapper):
    """Same as detectron2's mapper, but refuse files that are not images, and name files that cannot be read."""

    def __call__(self, dataset_dict: dict) -> dict:
        """Same as detectron2's method.

        Raises:
            GNDetError: the image cannot be read, or has another size than its annotations say. Any
                other exception gets a note with the name of the file.
        """
        path = dataset_dict["file_name"]
        check_format(path)
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError:
            height, width = read_image(path, "L").shape[:2]
            raise GNDetError(
                f"{path} has {width} x {height} pixels, but its annotations say {dataset_dict['width']} x "
                f"{dataset_dict['height']}: correct the width and height in the JSON."
            ) from None
        except Exception as error:
            read_image(path, "RGB")  # raises the sentence if the file is the cause
            error.add_note(f"This happened with the image {path}.")
            raise
