"""Pictures of images with one name in different folders have different names."""

from gn_det.drawing.names import picture_names


def test_folders_are_kept_below_the_common_one():
    assert picture_names(["/d/cam1/0001.png", "/d/cam8/0001.png"]) == ["cam1/0001", "cam8/0001"]
    assert picture_names(["/d/cam1/0001.png", "/d/cam1/0002.png"]) == ["0001", "0002"]
    assert picture_names(["/d/cam1/0001.png"]) == ["0001"] and picture_names([]) == []


def test_suffix_is_kept_if_only_it_differs():
    assert picture_names(["/d/a.jpg", "/d/a.png", "/d/b.png"]) == ["a.jpg", "a.png", "b"]
    names = picture_names(["/d/a.jpg.png", "/d/a.jpg", "/d/a.bmp"])
    assert len(set(names)) == 3 and names[0] == "a.jpg"


def test_one_image_that_is_listed_twice_has_two_names():
    assert picture_names(["/d/a.jpg", "/d/a.jpg"]) == ["a.jpg", "a.jpg-2"]
