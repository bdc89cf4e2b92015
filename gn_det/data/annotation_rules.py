"""Rules for the annotations (objects and crowd regions) of an annotation file."""

from dataclasses import replace

from . import annotation_fields as fields
from .rules import Action, Rule, leave_out
from .values import as_flag, show

ANNOTATION_RULES = (
    Rule(
        "annotation: image_id of another type",
        Action.READ,
        fields.has_other_image_id,
        fields.describe_image_id,
        fields.set_image_id,
        "it is read as the id of the image",
    ),
    Rule(
        "annotation: unknown image_id",
        Action.FIX,
        lambda row, known: type(row.get("image_id")) not in (int, str) or row["image_id"] not in known.images,
        lambda row, known: (
            f"{fields.name_of(row)} has image_id {show(row.get('image_id'))}, which is not among the images"
        ),
        leave_out,
        "the annotation is left out",
    ),
    Rule(
        "annotation: category_id of another type",
        Action.READ,
        fields.has_other_category_id,
        lambda row, known: f"{fields.name_of(row)} has category_id {show(row['category_id'])}",
        fields.set_category_id,
        "it is read as the integer id of the category",
    ),
    Rule(
        "annotation: unknown category_id",
        Action.FIX,
        fields.lacks_category,
        lambda row, known: (
            f"{fields.name_of(row)} has category_id {show(row.get('category_id'))}, which is not among the categories"
        ),
        leave_out,
        "the annotation is left out",
    ),
    Rule(
        "annotation: iscrowd of another type",
        Action.READ,
        lambda row, known: fields.has_other_flag(row, known) and as_flag(row["iscrowd"]) is not None,
        lambda row, known: f"{fields.name_of(row)} has iscrowd {show(row['iscrowd'])}",
        fields.set_flag,
        "null, false and 0 as text or float are read as 0; true and 1 as text or float as 1",
    ),
    Rule(
        "annotation: unknown iscrowd",
        Action.FIX,
        fields.has_other_flag,
        lambda row, known: f"{fields.name_of(row)} has iscrowd {show(row['iscrowd'])}, which is neither 0 nor 1",
        fields.clear_flag,
        "iscrowd is set to 0",
    ),
    Rule(
        "annotation: to be ignored",
        Action.READ,
        lambda row, known: as_flag(row.get("ignore")) != 0,
        lambda row, known: f"{fields.name_of(row)} has ignore {show(row['ignore'])}",
        fields.ignore,
        "it is read as a crowd region, which is not trained on and does not count in the evaluation",
    ),
    Rule(
        "annotation: bbox of another type",
        Action.READ,
        fields.has_other_box,
        lambda row, known: f"{fields.name_of(row)} has the bbox {show(row['bbox'])}",
        fields.set_box,
        "numbers as text are read as numbers",
    ),
    Rule(
        "annotation: mask in another form",
        Action.READ,
        fields.has_other_mask,
        lambda row, known: f"{fields.name_of(row)} has the segmentation {show(row['segmentation'])}",
        fields.set_mask,
        "it is read as lists [x1, y1, x2, y2, ...] or as run lengths of COCO",
    ),
    Rule(
        "annotation: bbox of width or height 0",
        Action.READ,
        fields.is_flat,
        fields.describe_box,
        leave_out,
        "the annotation is left out, as in detectron2",
    ),
    Rule(
        "annotation: faulty polygons among others",
        Action.FIX,
        fields.has_some_polygons,
        fields.describe_mask,
        fields.keep_polygons,
        "the faulty polygons are left out",
    ),
    Rule(
        "annotation: run lengths of another kind",
        Action.FIX,
        lambda row, known: fields.reread_mask(row, known) is not None,
        fields.describe_mask,
        fields.set_reread_mask,
        "they are read in the way that fits the box: as pairs of start and length, along the rows, or cut or extended "
        "to the size of the image",
    ),
    Rule(
        "annotation: mask that cannot be read",
        Action.FIX,
        fields.has_bad_mask,
        fields.describe_mask,
        fields.replace_mask,
        "the box becomes the mask; MODEL.MASK_ON False trains without masks",
    ),
    Rule(
        "annotation: bbox that the mask can give",
        Action.FIX,
        lambda row, known: not fields.is_box(row.get("bbox")) and fields.mask_box(row, known) is not None,
        fields.describe_box,
        fields.box_from_mask,
        "the bbox is computed from the mask",
    ),
    Rule(
        "annotation: no bbox",
        Action.FIX,
        lambda row, known: not fields.is_box(row.get("bbox")),
        fields.describe_box,
        leave_out,
        "the annotation is left out",
    ),
    Rule(
        "annotation: bbox outside its image",
        Action.FIX,
        fields.is_outside,
        fields.describe_outside,
        leave_out,
        "the annotation is left out",
    ),
    Rule(
        "annotation: bbox beyond its image",
        Action.NOTE,
        fields.extends_outside,
        fields.describe_outside,
        fields.clip,
        "the bbox is clipped to the image, as in detectron2",
    ),
    Rule(
        "annotation: no mask",
        Action.FIX,
        fields.lacks_mask,
        lambda row, known: f"{fields.name_of(row)} has no segmentation, but other annotations have one",
        fields.set_box_mask,
        "the box becomes the mask; MODEL.MASK_ON False trains without masks",
    ),
    Rule(
        "annotation: unusable area",
        Action.READ,
        fields.has_other_area,
        lambda row, known: f"{fields.name_of(row)} has area {show(row['area'])}",
        fields.set_area,
        "a number as text is read as a number; any other area is computed from the mask or the box",
    ),
    Rule(
        "annotation: duplicate",
        Action.NOTE,
        fields.is_duplicate,
        lambda row, known: f"{fields.name_of(row)} has the image, category, bbox and mask of an earlier one",
        leave_out,
        "the duplicate is left out",
    ),
)

_MASK_REPAIRS = (
    "annotation: faulty polygons among others",
    "annotation: run lengths of another kind",
    "annotation: no mask",
)
#: With ``MODEL.MASK_ON False``: a faulty mask is removed, and a missing one is not a problem.
BOX_RULES = tuple(
    replace(rule, action=Action.READ, repair=fields.remove_mask, remedy="the mask, which is not used, is removed")
    if rule.test is fields.has_bad_mask
    else rule
    for rule in ANNOTATION_RULES
    if rule.name not in _MASK_REPAIRS
)
