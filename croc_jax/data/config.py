"""Settings of the images, the crops and their photometric augmentation."""

import dataclasses
import math

from croc_jax.pixel_format import PixelFormat


def _check_crops(crop_size: int, scale: tuple[float, float]) -> None:
    if crop_size < 1:
        raise ValueError(f"crop_size={crop_size}: a view has at least one pixel")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale={scale}: give the smaller share of the image first, both over 0 up to 1")


def _check_probabilities(**probabilities: tuple[float, ...]) -> None:
    for name, values in probabilities.items():
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: a probability lies between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The random resized crops of an image.

    Attributes:
        crop_size: side of a view in pixels.
        scale: smallest and largest area of a crop over the area of the image.
        ratio: smallest and largest width over height.
        flip_probability: chance of a horizontal flip.
        decoding: "exact" resizes as torchvision does, bicubic with antialiasing; "fast" decodes a
            JPEG no finer than its crops need and averages areas, with the same boxes.
    """

    crop_size: int = 224
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    decoding: str = "exact"

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for crops that cannot be drawn."""
        _check_crops(self.crop_size, self.scale)
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: give the smaller width over height first, both positive")
        if self.decoding not in ("exact", "fast"):
            raise ValueError(f"decoding={self.decoding!r}: choose 'exact' or 'fast'")
        _check_probabilities(flip_probability=(self.flip_probability,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalViewsConfig:
    """Smaller crops that the student alone sees, for its global loss (DINO's multi-crop).

    Attributes:
        count: number of local crops; 0, as in the paper, for none.
        crop_size: side in pixels, a multiple of the patch size.
        scale: smallest and largest area over the area of the image; aspect ratios and flips are
            those of the views.
    """

    count: int = 0
    crop_size: int = 96
    scale: tuple[float, float] = (0.05, 0.25)

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for crops that cannot be drawn."""
        if self.count < 0:
            raise ValueError(f"count={self.count}: 0 or more")
        _check_crops(self.crop_size, self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotometricConfig:
    """Color, blur, solarization and noise; probabilities in pairs belong to view 1 and view 2.

    Attributes:
        brightness: factors are drawn from 1 - brightness to 1 + brightness.
        contrast: as brightness; about the mean gray value of RGB images, else about the mean of each channel.
        saturation: as brightness; images of three channels alone have it.
        hue: largest shift in turns; images of three channels alone have it.
        jitter_probability: chance of brightness, contrast, saturation and hue jitter together.
        grayscale_probability: chance of dropping colors; images of three channels alone have them.
        blur_probability: chance of a Gaussian blur.
        blur_radius: smallest and largest standard deviation of the blur in pixels.
        solarize_probability: chance of inverting the values above half of the range, in all channels.
        local_blur_probability: chance of a blur of each local crop.
        noise: largest standard deviation of Gaussian noise, in units of the range (0 to 1); the same for all channels.
        noise_probability: chance of noise, of a deviation drawn from 0 to `noise`.
        channel_drop_probability: chance of each channel to be replaced by its mean (`backbone.image_mean`); one
            always stays.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: tuple[float, float] = (1.0, 0.1)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.2)
    local_blur_probability: float = 0.5
    noise: float = 0.0
    noise_probability: float = 0.5
    channel_drop_probability: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("brightness", "contrast", "saturation", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue}: turns lie between 0 and 0.5")
        if not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
            raise ValueError(f"blur_radius={self.blur_radius}: give the smaller radius first, both 0 or more")
        _check_probabilities(
            jitter_probability=(self.jitter_probability,),
            grayscale_probability=(self.grayscale_probability,),
            blur_probability=self.blur_probability,
            solarize_probability=self.solarize_probability,
            local_blur_probability=(self.local_blur_probability,),
            noise_probability=(self.noise_probability,),
            channel_drop_probability=(self.channel_drop_probability,),
        )

    def check_channels(self, channels: int) -> None:
        """Raises ValueError, with the flags that turn them off, for operations that images of so many channels lack."""
        lacking = {"saturation": "saturation", "hue": "hue", "grayscale_probability": "colors to drop"}
        lacking = {} if channels == 3 else lacking
        if channels == 1:
            lacking["channel_drop_probability"] = "channel to spare"
        names = [name for name in lacking if getattr(self, name) > 0]
        if names:
            given = ", ".join(f"data.photometric.{name}={getattr(self, name)}" for name in names)
            what = ", no ".join(lacking[name] for name in names)
            flags = " ".join(f"--config.data.photometric.{name}=0" for name in names)
            of = "1 channel" if channels == 1 else f"{channels} channels"
            raise ValueError(f"{given}: images of {of} have no {what}; add {flags}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, what their values are, and how views are made of them.

    Attributes:
        folders: folders of images, searched recursively, one after another.
        sources: more images, each KIND:VALUE (`croc_jax.data.sources.registry`), after the folders.
        weights: shares of the images of an epoch, one a folder and then one a source, of any sum;
            empty to take each image once.
        channels: channels of an image, 1 to 16; files of others are unreadable.
        dtype: type of the stored values: "uint8", "uint16" or "float32".
        range: the values that become 0 and 1, see `PixelFormat`; empty for the whole range of an integer type.
        statistics: a file that `launch/prepare.py --statistics` wrote; it gives channels, dtype, range, and
            mean and deviation of the backbone, in place of the fields here. Empty for none.
        shown_channels: the channels that pictures show as red, green and blue, or as gray, from 0.
        window: side in pixels of the windows that larger images are divided into, each of which counts as an image;
            0 takes images as they are, up to 100 million pixels.
        views: the two crops of an image.
        local_views: smaller crops, off by default.
        max_bad_fraction: the share of unreadable images, of a thousand or more, that stops a run; 1 to never stop.
        photometric: the augmentation on the device.
    """

    folders: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    channels: int = 3
    dtype: str = "uint8"
    range: tuple[float, ...] = ()
    statistics: str = ""
    shown_channels: tuple[int, ...] = ()
    window: int = 0
    views: ViewsConfig = ViewsConfig()
    local_views: LocalViewsConfig = LocalViewsConfig()
    max_bad_fraction: float = 0.01
    photometric: PhotometricConfig = PhotometricConfig()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction}: a share lies between 0 and 1")
        for name in ("folders", "sources"):
            if not all(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: an empty name; remove it")
        count = len(self.folders) + len(self.sources)
        if self.weights and len(self.weights) != count:
            raise ValueError(f"weights={self.weights}: give one for each of {count} folders and sources, or none")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights={self.weights}: must be positive; leave a source out to give it no weight")
        if self.window < 0:
            raise ValueError(f"window={self.window}: must be 0 or more")
        # Its own errors name the field and the value.
        _ = self.pixels

    @property
    def pixels(self) -> PixelFormat:
        """The format of all images."""
        return PixelFormat(
            channels=self.channels, dtype=self.dtype, range=self.range, shown_channels=self.shown_channels
        )
