"""Images of one color each, and what must hold for every source of them."""

import io
import pickle

from PIL import Image


def encode(number, size=(8, 6), kind="PNG"):
    """Returns an encoded image of one color."""
    stream = io.BytesIO()
    Image.new("RGB", size, (10 * number, 0, 0)).save(stream, kind)
    return stream.getvalue()


def contents(source):
    return [source[i] for i in range(len(source))]


def names(source):
    return [source.name(i) for i in range(len(source))]


def check_copies(source):
    """A copy is small, has the same images and names, before and after the first read, and opens files by itself."""
    unread = pickle.dumps(source)
    expected = contents(source), names(source)
    for state in (unread, pickle.dumps(source)):
        copy = pickle.loads(state)
        assert len(state) < 2000 and (contents(copy), names(copy)) == expected and len(copy) == len(source)
