"""Pictures as sequences of colours, pixel by pixel, after ImageGPT.

Each pixel becomes the nearest of a few colours, the centres of k-means over the training pictures, and a picture the
sequence of its pixels from left to right and from top to bottom, after a start token. Source: Chen et al. 2020,
"Generative Pretraining from Pixels", sections 2 and 3.4.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mingpt_lightning.datamodule import Batch, SequenceDataModule, Split, check_split
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.imagegpt import read_palette
from mingpt_lightning.tokenizer import Tokenizer
from projects.pixels.pictures import package, read_folder, read_picture, read_source, resize, write_grid

SPLIT_KEY = 1337  # of the permutation that splits the pictures; never changes
COLOURS, GREYS = 512, 16  # of a palette, by default: ImageGPT's, and as many as are in the digits but one
SAMPLE = 2**16  # pixels that k-means sees
AT_ONCE = 2**14  # pixels whose distances to all colours are in memory at once
MISSING = 128.0  # the grey of pixels that are not there
SHADES = " .:-=+*#%@"  # from dark to bright


class PixelTokenizer(Tokenizer):
    """Pictures of one size in a palette; the number after that of the last colour starts a picture.

    palette: the colours, each of 1 or 3 channels from 0 to 255. size: height and width.

    A prompt is the path of a picture, of which a model gets the upper half. As text, a picture is its shades.

    >>> PixelTokenizer(palette=[[0], [127.5], [255]], size=[2, 2]).decode([3, 0, 1, 1, 2])
    ' =\\n=@\\n'
    """

    name = "pixels"
    unit = "dimension"
    start_token: int
    picture: tuple[int, int]

    def __init__(self, palette: Sequence[Sequence[float]], size: Sequence[int]):
        super().__init__(palette=[list(map(float, colour)) for colour in palette], size=list(size))
        self.palette = np.array(self.arguments["palette"], np.float32)  # (colours, channels)
        if self.palette.ndim != 2 or self.palette.shape[1] not in (1, 3):
            raise UserError("the palette is no list of colours", "palette", "Give each 1 or 3 numbers from 0 to 255.")
        self.picture = (size[0], size[1])
        self.n_colours, self.channels = self.palette.shape
        self.start_token = self.n_colours
        lengths = np.full(self.vocab_size, self.channels)
        self.byte_lengths = lengths if self.channels > 1 else None  # dimensions: channels of a pixel
        bright = self.palette.mean(axis=1) * (len(SHADES) - 1) / 255
        self.shades = [SHADES[int(shade)] for shade in bright.round().clip(0, len(SHADES) - 1)]

    @property
    def vocab_size(self) -> int:
        return self.n_colours + 1

    def quantize(self, pixels: np.ndarray) -> np.ndarray:
        """The number of the nearest colour of each pixel: (..., channels) -> (...)."""
        flat, palette = torch.from_numpy(pixels.reshape(-1, self.channels)), torch.from_numpy(self.palette)
        parts = [torch.cdist(part.float(), palette).argmin(dim=1) for part in flat.split(AT_ONCE)]
        return torch.cat(parts).numpy().astype(np.uint16).reshape(pixels.shape[:-1])

    def read(self, path: str | Path, where: str = "prompt") -> list[int]:
        """The tokens of a picture's file, without the start token."""
        return self.quantize(read_picture(path, self.picture, self.channels == 1, where)).ravel().tolist()

    def encode(self, text: str) -> list[int]:
        height, width = self.picture
        return self.read(text)[: height // 2 * width] if text else []

    def encode_prompt(self, text: str) -> list[int]:
        return [self.start_token, *self.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        height, width = self.picture
        shades = [self.shades[token] for token in tokens if token < self.n_colours][: height * width]
        rows = ["".join(shades[start : start + width]) for start in range(0, len(shades), width)]
        return "".join(f"{row}\n" if len(row) == width else row for row in rows)

    def paint(self, tokens: Sequence[int]) -> np.ndarray:
        """The picture of some tokens, (H, W, channels) uint8; what is missing at the end is grey."""
        height, width = self.picture
        canvas = np.full((height * width, self.channels), MISSING)
        canvas[: len(tokens)] = self.palette[np.array(tokens, int)]
        return canvas.round().clip(0, 255).astype(np.uint8).reshape(height, width, self.channels)

    def write_pictures(
        self, file: Path, rows: Sequence[Sequence[Sequence[int]]], prompts: Sequence[str] | None = None
    ) -> None:
        named = [[self.read(prompt)] if prompt else [] for prompt in prompts or [""] * len(rows)]
        whole = [[*first, *row] for first, row in zip(named, rows, strict=True)]
        write_grid(file, [[self.paint(tokens) for tokens in row] for row in whole])


def fit_palette(pixels: np.ndarray, n_clusters: int) -> list[list[float]]:
    """The centres of k-means over pixels, (N, channels), from dark to bright; all colours, if there are no more."""
    rng = np.random.default_rng(SPLIT_KEY)
    sample = pixels[rng.choice(len(pixels), SAMPLE, replace=False)] if len(pixels) > SAMPLE else pixels
    colours, counts = np.unique(sample, axis=0, return_counts=True)
    if len(colours) > n_clusters:
        KMeans = package("sklearn.cluster", "palette").KMeans
        means = KMeans(n_clusters, n_init=1, max_iter=100, random_state=SPLIT_KEY)
        colours = means.fit(colours.astype(np.float64), sample_weight=counts).cluster_centers_.round(2)
    return sorted(colours.tolist(), key=lambda colour: (sum(colour), colour))


class PixelDataset:
    """The pictures of one split: (B,) indices -> two (B, H * W) tensors, the first one pixel behind.

    tokens: (N, H, W). shift: each picture is also there moved by up to so many pixels, its edge repeated.
    """

    def __init__(self, tokens: np.ndarray, start_token: int, shift: int = 0):
        self.tokens = tokens
        self.start_token = start_token
        self.shift = shift
        self.epoch_size = len(tokens)

    def __len__(self) -> int:
        return len(self.tokens) * (2 * self.shift + 1) ** 2

    def __getitem__(self, indices: Tensor) -> Batch:
        _, height, width = self.tokens.shape
        moves, numbers = np.divmod(indices.numpy(), len(self.tokens))
        down, right = np.divmod(moves[:, None], 2 * self.shift + 1)
        rows = (np.arange(height) + down - self.shift).clip(0, height - 1)  # (B, H)
        columns = (np.arange(width) + right - self.shift).clip(0, width - 1)
        moved = self.tokens[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        targets = torch.from_numpy(moved.reshape(len(moved), -1).astype(np.int64))
        return torch.cat([torch.full_like(targets[:, :1], self.start_token), targets[:, :-1]], dim=1), targets


class PixelDataModule(SequenceDataModule):
    """Pictures in raster order, in the colours of a palette.

    images: "digits" of scikit-learn, or "mnist", 5,000 of its digits; path: a folder of pictures instead.
    size: height and width, one number for both; None takes that of the images, and 32 for a folder. grey: whether they
    are made grey; None: if all are. n_clusters: colours in the palette, at most; None: 512, or 16 greys. palette: its
    colours, or a folder or hub id of an ImageGPT, whose colours they are; None: k-means over the training pictures.
    shift: training sees each picture also moved by up to so many pixels. split: the fractions for training, validation
    and test.

    Raises UserError for pictures that are missing, unreadable or too few, and where an extra isn't installed.
    """

    def __init__(
        self,
        images: str = "digits",
        path: str | None = None,
        *,
        size: int | Sequence[int] | None = None,
        grey: bool | None = None,
        n_clusters: int | None = None,
        palette: Sequence[Sequence[float]] | str | None = None,
        shift: int = 0,
        split: Sequence[float] = (0.8, 0.1, 0.1),
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        check_split(split)
        require_positive(shift=shift + 1)
        if n_clusters is not None:
            require_positive(n_clusters=n_clusters)
        if isinstance(palette, str):
            palette = read_palette(palette, where="palette")
        if palette is not None:
            if grey not in (None, len(palette[0]) == 1):
                raise UserError(f"grey={grey} with a palette of another kind", "grey", "Leave it out.")
            grey = len(palette[0]) == 1
        pixels, self.labels = self.read(images, path, size, grey)
        self.parts = parts(len(pixels), split)
        if palette is None:
            channels = pixels.shape[-1]
            training = pixels[self.parts["train"]].reshape(-1, channels)
            palette = fit_palette(training, n_clusters or (GREYS if channels == 1 else COLOURS))
            if len(palette) < 2:
                raise UserError("the pictures have one colour", "palette", "Give others; there is nothing to learn.")
        self.tokenizer: PixelTokenizer = PixelTokenizer(palette, pixels.shape[1:3])
        self.tokens = self.tokenizer.quantize(pixels)  # (N, H, W)
        self.block_size = self.tokens[0].size
        self.shift = shift

    def read(
        self, images: str, path: str | None, size: int | Sequence[int] | None, grey: bool | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The pictures, (N, H, W, channels), and their classes, if they have any."""
        shape = [size, size] if isinstance(size, int) else None if size is None else list(size)
        if shape is not None:
            if len(shape) != 2:
                raise UserError(f"size={shape} is no height and width", "size", "Give both, or one number.")
            require_positive(size=min(shape))
        if path is not None:
            return read_folder(path, shape or [32, 32], grey)
        pixels, labels = read_source(images)
        pixels = resize(pixels, shape or pixels.shape[1:3])
        return pixels if grey in (None, True) else pixels.repeat(3, axis=-1), labels

    def dataset(self, split: Split) -> PixelDataset:
        shift = self.shift if split == "train" else 0
        return PixelDataset(self.tokens[self.parts[split]], self.tokenizer.start_token, shift)


def parts(count: int, split: Sequence[float]) -> dict[Split, np.ndarray]:
    """Which of the pictures are for training, validation and test. Raises UserError where there are too few."""
    order = np.random.default_rng(SPLIT_KEY).permutation(count)
    first, second = round(split[0] * count), round((split[0] + split[1]) * count)
    found: dict[Split, np.ndarray] = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    for (name, part), share in zip(found.items(), split, strict=True):
        if share and not len(part):
            raise UserError(f"of {count} pictures, none is for {name}", "split", "Give more pictures.")
    return found
