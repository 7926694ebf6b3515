"""Keys and values of time attention, kept between the steps of a rollout.

Time attention is causal and everything else in the model works frame by frame. So while scales and jitter are held,
the frames that were already read need not be computed again for the next forecast: their keys and values are enough.

Shapes: B batch, T frames, S tokens of a frame, N heads, E head size.
"""

from torch import Tensor


class WalrusLayerCache:
    """Keys and values of one layer, with room for a fixed number of frames."""

    def __init__(self, capacity: int):
        self.capacity, self.frames = capacity, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append frames `(B, T, S, N, E)`; returns those of all frames so far, `(B, frames, S, N, E)` each."""
        if self.keys is None or self.values is None:  # made once: appending would copy all frames at every step
            self.keys = key.new_empty(key.shape[0], self.capacity, *key.shape[2:])
            self.values = value.new_empty(value.shape[0], self.capacity, *value.shape[2:])
        first, self.frames = self.frames, self.frames + key.shape[1]
        if self.frames > self.capacity:
            raise ValueError(f"past_key_values: expected at most {self.capacity} frames, found {self.frames}")
        self.keys[:, first : self.frames] = key
        self.values[:, first : self.frames] = value
        return self.keys[:, : self.frames], self.values[:, : self.frames]


class WalrusTimeCache:
    """What a model remembers of the frames it has read, for `past_key_values`.

    Give the first frames with an empty cache, then the following frames alone, always with one and the same `plan`,
    `value_scales` and `change_scales`: frames that were read with others do not fit together.

    Holds `2 * layers * frames * tokens * hidden` numbers.

    Args:
        layers: layers of the model.
        capacity: most frames, those of the first call included.
    """

    def __init__(self, layers: int, capacity: int):
        self.layers = [WalrusLayerCache(capacity) for _ in range(layers)]

    @property
    def frames(self) -> int:
        """Frames read so far."""
        return self.layers[0].frames
