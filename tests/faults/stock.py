"""The same tiny training with stock detectron2: its DefaultTrainer, launcher, evaluator and predictor.

    stock.py --data DATA [--eval-only] [--resume] [--num-gpus N] [--predict IMAGE] KEY VALUE ...

DATA is the folder that ``gn_det.data.shapes.generate`` wrote. The model has detectron2's classes and the values of gn_det's
quickstart config for all keys that detectron2 has.
"""

import os
import sys
from pathlib import Path

import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor, DefaultTrainer, default_argument_parser, default_setup, defaults, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from gn_det.benchmark.candidates import stock_config
from gn_det.config.files import load_config
from helpers.configs import flatten

NAMES = ("stock_train", "stock_val")


class Trainer(DefaultTrainer):
    """DefaultTrainer with COCO's evaluator; the only other change lets it train in several processes without GPUs."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR, "inference")))


def _wrap(model, *, fp16_compression=False, **options):
    if comm.get_world_size() == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, broadcast_buffers=False)


def setup(args) -> CfgNode:
    """Register the data, and return the config of a run."""
    data = Path(args.data)
    for name in NAMES:
        split = name.removeprefix("stock_")
        register_coco_instances(name, {}, str(data / f"{split}.json"), str(data / split))
    cfg, own = get_cfg(), flatten(stock_config(load_config("quickstart_R18_FPN_gn_scratch")))
    known = flatten(cfg)
    cfg.merge_from_list([word for key in own.keys() & known.keys() for word in (key, own[key])])
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = "cpu", NAMES[:1], ()
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    return cfg


def main(args) -> None:
    """Train, evaluate or predict."""
    defaults.create_ddp_model = _wrap
    cfg = setup(args)
    if args.predict:
        cfg.MODEL.WEIGHTS = DetectionCheckpointer(None, cfg.OUTPUT_DIR).get_checkpoint_file()
        print(DefaultPredictor(cfg)(read_image(args.predict, "BGR")))
    elif args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        cfg.defrost()
        cfg.DATASETS.TEST = NAMES[1:]
        print(Trainer.test(cfg, model))
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def cli() -> None:
    """Run with the arguments of the process."""
    parser = default_argument_parser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--predict", default="")
    args = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        comm.create_local_process_group(int(os.environ["WORLD_SIZE"]))
        main(args)
        dist.destroy_process_group()
    else:
        launch(main, args.num_gpus, dist_url="auto", args=(args,))


if __name__ == "__main__":
    sys.modules["faults.stock"] = sys.modules["__main__"]
    from faults import stock

    stock.cli()
