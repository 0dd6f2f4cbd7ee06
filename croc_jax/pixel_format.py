"""What the values of images are: how many channels, of which type, and which of them become 0 and 1."""

import dataclasses
import math

MAX_CHANNELS = 16
DTYPES = ("uint8", "uint16", "float32")
_LARGEST = {"uint8": 255.0, "uint16": 65535.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """The format that all images of a run, and of evaluations of its weights, have.

    Attributes:
        channels: channels of an image, 1 to 16.
        dtype: type of the stored values: "uint8", "uint16" or "float32".
        range: the values that become 0 and 1, what lies beyond them is clipped: none for the whole range of an integer
            type; low and high for all channels; or low and high of the first channel, then of the second, and so on.
        shown_channels: the channels that pictures show as red, green and blue, or one that they show as gray, from 0;
            by default the first three, or the first of fewer.
    """

    channels: int = 3
    dtype: str = "uint8"
    range: tuple[float, ...] = ()
    shown_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for a format that cannot be."""
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"channels={self.channels}: choose 1 to {MAX_CHANNELS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if len(self.range) not in (0, 2, 2 * self.channels):
            raise ValueError(
                f"range={self.range}: give low and high, or low and high of each of {self.channels} channels"
            )
        if not all(math.isfinite(value) for value in self.range) or any(
            low >= high for low, high in zip(self.range[::2], self.range[1::2], strict=True)
        ):
            raise ValueError(f"range={self.range}: give finite numbers, each low one below its high one")
        if self.dtype == "float32" and not self.range:
            raise ValueError("range=(): floating-point values have no range of their own; give low and high")
        shown = self.shown_channels
        if len(shown) not in (0, 1, 3) or not all(0 <= channel < self.channels for channel in shown):
            raise ValueError(f"shown_channels={shown}: name three channels, or one, from 0 to {self.channels - 1}")

    @property
    def is_rgb8(self) -> bool:
        """Whether images are 8-bit RGB, which any common file can be read as."""
        return self.channels == 3 and self.dtype == "uint8" and not self.range

    @property
    def limits(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The values of each channel that become 0, and those that become 1."""
        values = self.range or (0.0, _LARGEST[self.dtype])
        values = values if len(values) > 2 else values * self.channels
        return values[::2], values[1::2]

    @property
    def rgb_channels(self) -> tuple[int, int, int]:
        """The channels that pictures show as red, green and blue."""
        shown = self.shown_channels or ((0, 1, 2) if self.channels > 2 else (0,))
        return shown[0], shown[-2 if len(shown) == 3 else 0], shown[-1]

    def describe(self) -> str:
        """Returns channels and type in words, for messages."""
        return f"{self.channels} channel{'s' if self.channels > 1 else ''} of {self.dtype}"


RGB8 = PixelFormat()
