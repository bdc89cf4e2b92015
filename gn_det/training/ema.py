"""Exponential moving average (EMA) of the weights, kept during training."""

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(HookBase):
    """Hook that keeps an exponential moving average of the weights of a model in a copy of it.

    W'_0 = W_0 and W'_t = d_t W'_(t-1) + (1 - d_t) W_t after iteration t, where W are the weights and
    d_t = min(decay, (1 + t) / (10 + t)). The trained model itself is never changed, so nothing has to
    be restored after an evaluation of the average.

    Args:
        model: the model without its DDP wrapper, so that the names in state dicts do not change.
        decay: upper limit of d_t. The lower d_t of the first iterations are those of TensorFlow's
            ExponentialMovingAverage: without them the random initial weights would stay in the
            average for about 1 / (1 - decay) iterations.

    Attributes:
        averaged: a module like ``model`` with the averaged weights. The running statistics of batch
            norm are averaged too, because those of the model do not belong to the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self._decay = decay
        self._average = AveragedModel(model, use_buffers=True)
        self.averaged: nn.Module = self._average.module.requires_grad_(False)

    def after_step(self) -> None:
        """Update the average with the weights of the model."""
        t = int(self._average.n_averaged)
        self._average.multi_avg_fn = get_ema_multi_avg_fn(min(self._decay, (1 + t) / (10 + t)))
        self._average.update_parameters(self.model)
        for mean, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            if not value.is_floating_point():  # batch norm's count of batches is copied, not averaged
                mean.copy_(value)

    def after_load(self) -> None:
        """Copy the loaded weights to the trained model, unless they are an average.

        Call it after weights were loaded into ``averaged``. If they were not loaded together with
        the state of this hook, they are no average, and they are copied to the model.
        """
        if not self._average.n_averaged:
            self.model.load_state_dict(self.averaged.state_dict())

    def state_dict(self) -> dict:
        """Return {"updates": the number of updates of the average so far}."""
        return {"updates": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict) -> None:
        """Continue with the number of updates of an earlier run."""
        self._average.n_averaged.fill_(state["updates"])
