"""The exponential moving average of the weights: W'_0 = W_0, W'_t = d_t W'_(t-1) + (1 - d_t) W_t at iteration t."""

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(HookBase):
    """Averages a model while it trains. The model itself is never touched, so an evaluation needs nothing restored.

    Args:
        model: the model without its DDP wrapper, so that names in state dicts stay.
        decay: what d_t = min(decay, (1 + t) / (10 + t)) rises to. The warm-up is TensorFlow's: without it the random
            weights of the start would stay in for some 1 / (1 - decay) iterations.

    Attributes:
        averaged: a module like ``model`` with the averaged weights. Batch norm's running statistics are averaged too,
            as those of the model belong to other weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self._decay = decay
        self._average = AveragedModel(model, use_buffers=True)
        self.averaged: nn.Module = self._average.module.requires_grad_(False)

    def after_step(self) -> None:
        t = int(self._average.n_averaged)
        self._average.multi_avg_fn = get_ema_multi_avg_fn(min(self._decay, (1 + t) / (10 + t)))
        self._average.update_parameters(self.model)
        for mean, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            if not value.is_floating_point():  # batch norm's count of batches has no average
                mean.copy_(value)

    def after_load(self) -> None:
        """After a load into ``averaged``: where it brought no average to go on with, the model starts from there."""
        if not self._average.n_averaged:
            self.model.load_state_dict(self.averaged.state_dict())

    def state_dict(self) -> dict:
        return {"updates": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict) -> None:
        self._average.n_averaged.fill_(state["updates"])
