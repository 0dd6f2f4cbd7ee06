"""Which files are images: the formats that this machine's Pillow decodes, by suffix, and what to do about others."""

from PIL import features

# Of the formats that Pillow reads, those that images come in; the second table by the decoder that not all builds have.
_COMMON = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
_OPTIONAL = {"webp": (".webp",), "avif": (".avif",), "jpg_2000": (".jp2", ".j2k", ".jpx")}
_HEIF = (".heic", ".heif", ".hif")

try:
    import pillow_heif  # pyright: ignore[reportMissingImports]
except ImportError:
    _HEIF_READ = ()
else:
    # In each process that imports the decoder.
    pillow_heif.register_heif_opener()
    _HEIF_READ = _HEIF

# In any case.
SUFFIXES = (*_COMMON, *(suffix for name, of in _OPTIONAL.items() if features.check(name) for suffix in of), *_HEIF_READ)
# Arrays often lie beside images as their features or labels: they are images only where there are no others.
ARRAY_SUFFIX = ".npy"
# A lossy format would change ids at the edges of segments, and a GIF may renumber its palette.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_HINTS = {
    _HEIF: "pip install pillow-heif",
    tuple(suffix for of in _OPTIONAL.values() for suffix in of): "this build of Pillow has no decoder for it",
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"): "raw: develop to JPEG or PNG",
    (".psd", ".psb", ".xcf", ".svg", ".svgz", ".eps", ".pdf", ".jxl", ".exr", ".hdr", ".dcm"): "export as PNG",
    (ARRAY_SUFFIX,): "read where no other images are, or by list:FILE and tar:PATHS@npy",
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg"): "extract frames: ffmpeg -i VIDEO FOLDER/%05d.jpg",
    (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz"): "unpack it; source tar: reads plain tar files",
}
HINTS = {suffix: hint for suffixes, hint in _HINTS.items() for suffix in suffixes if suffix not in SUFFIXES}
