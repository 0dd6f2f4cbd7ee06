"""Runs the notebooks of this folder anew and stores what they show, with pictures of few bytes.

    pip install -e ".[notebooks]"
    python examples/refresh.py [NAME ...]

Run `make demo` before: the notebooks look at its run.
"""

import base64
import io
import sys
from pathlib import Path

from absl import flags
from PIL import Image

from croc_jax.runtime.program import UserError, run

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Runs those named, or all."""
    import nbformat
    from nbclient import NotebookClient

    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    if unknown := [name for name in sys.argv[1:] if name not in known]:
        raise UserError(f"no notebook {unknown[0]}: choose among {', '.join(known)}")
    for name in sys.argv[1:] or known:
        path = FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(FOLDER)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = shrink(data["image/png"])
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def shrink(encoded: str) -> str:
    """Returns a PNG of at most 255 colors, which photographs and labels do with."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        page = Image.new("RGB", picture.size, "white")
        page.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
    buffer = io.BytesIO()
    few = page.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    run(main, parse=lambda argv: flags.FLAGS(argv)[:1])
