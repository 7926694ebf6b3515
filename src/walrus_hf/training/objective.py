"""What is minimised: the loss of given frames, or of the model's own forecasts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..jitter import with_shifts
from ..modeling_walrus import WalrusForPrediction, mask_state
from ..normalization import delta_scales, field_scales, per_channel


class TrainingModel(nn.Module):
    """The model as the loop calls it: losses, the last forecast, and a gradient for every parameter.

    A batch reaches the encoder and decoder of planes or those of volumes. Under data parallelism all ranks must agree
    which parameters get gradients (FSDP2 even adds those of different encoders up), so the others get zeros.
    """

    def __init__(self, model: WalrusForPrediction) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, own_steps: int = 0, generator: torch.Generator | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss; the mean absolute error of each channel `(C,)` in units of its change; and the forecast after the
        last frame `(B, C, H, W, D)`. Only the loss has a gradient.

        With `own_steps` the model first forecasts that many steps from the first frames, all but as many, and the loss
        is that of the last of given and forecast frames: what a rollout with held scales feeds back. Shifts are drawn
        from the generator. The labels stay the truth.
        """
        if own_steps:
            inputs = self._after_own_steps(own_steps, generator, inputs)
        output = self.model(**inputs)
        ends = [*self.model.model.embeddings.parameters(), *self.model.decoder.parameters()]
        tie = torch.stack([parameter.sum() for parameter in ends]).sum()
        with torch.no_grad():
            states = inputs["field_values"]
            scales = inputs.get("change_scales")
            scales = delta_scales(states, self.model.config.scale_eps) if scales is None else scales
            errors = (output.prediction - inputs["labels"]).abs() / per_channel(scales)
            # Scored as in the loss: the first frame has no context.
            channel_losses = errors[:, 1:].mean((0, 1, 3, 4, 5))
        return output.loss + 0.0 * tie, channel_losses, output.prediction[:, -1].detach()

    def _after_own_steps(self, steps: int, generator: torch.Generator | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """As many frames, the last of them forecast, with the scales of the given ones where the inputs have none."""
        given = mask_state(inputs["field_values"][:, :-steps], None, inputs.get("obstacle_mask"))  # (B, T, C, H, W, D)
        eps = self.model.config.scale_eps
        scales = {"value_scales": field_scales(given, eps), "change_scales": delta_scales(given, eps)}
        held = {**scales, **{name: x for name, x in inputs.items() if name not in ("field_values", "labels")}}
        forecasts = list(self.model.rollout(given, num_steps=steps, generator=generator, **held))
        # Autocast keeps the weights that it has cast, here without a history: the next pass would give no gradients.
        torch.clear_autocast_cache()
        values = torch.cat([given, torch.stack(forecasts, 1).to(given.dtype)], 1)[:, steps:]
        plan, labels = with_shifts(inputs["plan"], generator), inputs["labels"][:, steps:]
        return {**held, "plan": plan, "field_values": values, "labels": labels}
