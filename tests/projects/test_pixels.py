"""pixels: pictures to colours and back, splits of pictures, samples as PNG, and what the layers know."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mingpt_lightning import GPT, LanguageModel, Tokenizer, UserError
from projects.pixels import probe
from projects.pixels.datamodule import PixelDataModule, PixelDataset, PixelTokenizer, fit_palette
from projects.pixels.pictures import read_folder, read_picture, write_grid
from tests.common import SMALL, Cli, summary

GREYS = PixelTokenizer([[0], [100], [255]], [4, 3])
TINY = (*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=2", "callbacks.samples.every_n_validations=1")


def save(path: Path, pixels: object, mode: str = "L") -> Path:
    """A picture as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).convert(mode).save(path)
    return path


def load(path: str | Path) -> np.ndarray:
    """The pixels of a file."""
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.fixture(scope="module")
def digits() -> PixelDataModule:
    """The digits of scikit-learn."""
    return PixelDataModule()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of random pictures in two classes, of different sizes, and a text beside them."""
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (9 + number, 12, 3)) // 2 + 120 * (number % 2)
        save(tmp_path / f"photos/{'ab'[number % 2]}/{number}.png", pixels, "RGB")
    (tmp_path / "photos/notes.txt").write_text("nothing to see")
    return tmp_path / "photos"


def test_a_picture_is_its_nearest_colours_in_raster_order(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", [[0, 49, 51], [255, 178, 177], [100, 100, 100], [1, 2, 254]])
    tokens = [0, 0, 1, 2, 2, 1, 1, 1, 1, 0, 0, 2]
    assert GREYS.read(path) == tokens
    assert GREYS.paint(tokens)[..., 0].tolist() == [[0, 0, 100], [255, 255, 100], [100, 100, 100], [0, 0, 255]]
    assert GREYS.encode_prompt(str(path)) == [3, *tokens[:6]]  # the upper half
    assert GREYS.encode_prompt("") == [3]
    assert GREYS.decode([3, *tokens]) == "  =\n@@=\n===\n  @\n"
    assert GREYS.decode([3, *tokens]).startswith(GREYS.decode(tokens[:7]))


def test_a_wider_picture_is_cut_in_the_middle(tmp_path: Path) -> None:
    path = save(tmp_path / "wide.png", np.repeat([[9] * 3 + [200] * 4 + [9] * 3], 4, axis=0))
    assert read_picture(path, [8, 8], True)[:, 1:-1, 0].tolist() == [[200] * 6] * 8  # but for the edge


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", None, None) == 255).all()


def test_the_tokenizer_survives_a_checkpoint() -> None:
    again = Tokenizer.from_state(GREYS.state())
    assert isinstance(again, PixelTokenizer)
    assert again.state() == GREYS.state()
    assert (again.vocab_size, again.start_token, again.picture) == (4, 3, (4, 3))


def test_a_palette_is_the_centres_of_the_pixels() -> None:
    pixels = np.array([[10], [11], [12], [200], [201], [202]], np.uint8)
    assert fit_palette(pixels, 2) == [[11.0], [201.0]]
    assert fit_palette(pixels, 6) == [[float(value)] for value in pixels[:, 0]]  # there are no more
    colours = np.array([[250, 0, 0], [255, 5, 5], [0, 0, 250]] * 5, np.uint8)
    assert len(fit_palette(colours, 2)) == 2


def test_every_picture_is_in_one_split(digits: PixelDataModule) -> None:
    assert {name: len(part) for name, part in digits.parts.items()} == {"train": 1438, "val": 179, "test": 180}
    assert len(set(np.concatenate([*digits.parts.values()]).tolist())) == 1797
    assert digits.labels is not None
    assert len(digits.labels) == 1797
    assert (digits.vocab_size, digits.block_size) == (17, 64)
    assert digits.parts["test"][:3].tolist() == PixelDataModule(seed=1).parts["test"][:3].tolist()


def test_the_start_token_comes_before_the_first_pixel(digits: PixelDataModule) -> None:
    inputs, targets = digits.dataset("test")[torch.tensor([3, 5])]
    assert (inputs[:, 0] == 16).all()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert targets[1].tolist() == digits.tokens[digits.parts["test"][5]].ravel().tolist()


def test_training_may_see_pictures_moved() -> None:
    tokens = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    dataset = PixelDataset(tokens, 12, shift=1)
    assert (len(dataset), dataset.epoch_size) == (9, 1)
    moved = {tuple(targets.tolist()) for targets in dataset[torch.arange(9)][1]}
    assert len(moved) == 9
    assert tuple(range(12)) in moved
    assert (0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7) in moved  # down, the edge repeated
    data = PixelDataModule(shift=1)
    assert (len(data.dataset("train")), len(data.dataset("val"))) == (9 * 1438, 179)


def test_mnist_is_28_by_28() -> None:
    data = PixelDataModule("mnist", n_clusters=4)
    assert (len(data.tokens), data.block_size, data.vocab_size) == (5000, 784, 5)


def test_a_folder_of_pictures_has_the_classes_of_its_folders(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PixelDataModule(path=str(photos), size=[4, 6], n_clusters=8)
    assert data.tokenizer.palette.shape == (8, 3)
    assert (data.block_size, data.vocab_size) == (24, 9)
    assert data.labels is not None
    assert sorted(data.labels.tolist()) == [0] * 10 + [1] * 10
    assert "1 files are no pictures by their names" in capsys.readouterr().err
    grey = PixelDataModule(path=str(photos), size=4, grey=True)
    assert grey.tokenizer.channels == 1
    save(photos / "grey.png", [[1, 2], [3, 4]])
    assert read_folder(photos, [4, 4], None).pixels.shape == (21, 4, 4, 3)  # one of them is grey


def test_a_colour_is_three_dimensions(photos: Path) -> None:
    data = PixelDataModule(path=str(photos), size=4, n_clusters=8)
    system = LanguageModel(GPT(9, 16, n_layer=1, n_head=1, n_embd=8), tokenizer=data.tokenizer)
    assert system.byte_lengths is not None
    assert system.byte_lengths.tolist() == [3] * 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "digit"}, r"images=digit is not known .*Did you mean 'digits'.*path=FOLDER"),
        ({"path": "nowhere"}, r"nowhere does not exist \(path\)"),
        ({"size": [1, 2, 3]}, "no height and width"),
        ({"size": 0}, "size=0 is not a positive integer"),
        ({"n_clusters": 0}, "n_clusters=0 is not a positive integer"),
        ({"n_clusters": 1}, "have one colour"),
        ({"palette": [[1, 2]]}, "no list of colours"),
        ({"split": [1.0, 0.5, 0.5]}, "does not add up"),
        ({"split": [0.9999, 0.0001, 0.0]}, "none is for val"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PixelDataModule(**arguments)  # type: ignore[arg-type]


def test_what_is_no_picture_is_refused_with_what_is_supported(tmp_path: Path, photos: Path) -> None:
    (photos / "a/text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"text\.png is not a picture \(path\)\. Supported: PNG, JPEG,"):
        PixelDataModule(path=str(photos))
    with pytest.raises(UserError, match=r"nowhere\.png does not exist \(prompt\)"):
        GREYS.encode("nowhere.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no picture in .*empty, of 0 files \(path\)\. Supported: PNG"):
        PixelDataModule(path=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="is a file"):
        PixelDataModule(path=str(photos / "notes.txt"))


def test_without_the_extra_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"sklearn, which is not installed .*pip install .*\[pixels\]"):
        PixelDataModule()


def test_a_grid_shows_the_pictures_enlarged(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", [[GREYS.paint([1] * 12), GREYS.paint([2] * 12)], [GREYS.paint([0] * 6)]])
    grid = load(tmp_path / "grid.png")
    assert grid.shape == (4 + 2 * (64 + 4), 4 + 2 * (48 + 4))
    assert (grid[30, 20], grid[30, 80], grid[80, 20], grid[130, 20], grid[130, 80]) == (100, 255, 0, 128, 255)


def test_a_run_trains_samples_and_completes(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("datamodule=pixels", "run_dir=run", *TINY)
    assert status == 0, err
    metrics = summary()["metrics"]
    assert metrics["test/bits_per_dimension"] == pytest.approx(metrics["test/loss"] / math.log(2))
    assert "bits per dimension" in err
    generate = ("task=generate", "checkpoint=run")
    for name in ("pictures.png", "pictures-2.png"):
        status, out, err = cli(*generate, "num_samples=5")
        assert (status, out) == (0, ""), err
        assert f"written     {name}" in err
        assert load(name).shape == (4 + 2 * 68, 4 + 3 * 68)
    assert Path("pictures.png").read_bytes() == Path("pictures-2.png").read_bytes()  # a seed repeats it
    digit = [[0] * 4 + [255] * 4] * 8
    save(tmp_path / "digit.png", digit)
    status, _, err = cli(*generate, "prompt=digit.png", "num_samples=2", "output=completed.png")
    assert status == 0, err
    grid = load("completed.png")
    first, half, *completions = (grid[4:68, 4 + 68 * n : 68 + 68 * n] for n in range(4))
    assert first[::8, ::8].tolist() == digit
    for picture in (half, *completions):
        assert picture[:32:8, ::8].tolist() == digit[:4]
    assert (half[32:] == 128).all()
    for wrong, message in (
        ("prompt=nothing.png", "nothing.png does not exist (prompt)"),
        ("output=text.jsonl", "written as PNG, not as text.jsonl (output). Use text.png."),
        ("stop=a", "stop=a is for text, and this model makes pictures (stop)"),
        ("output=completed.png", "is there already"),
    ):
        status, _, err = cli(*generate, wrong)
        assert status == 2, err
        assert message in err


def test_the_palette_of_a_run_comes_back(cli: Cli, photos: Path) -> None:
    status, _, err = cli("datamodule=pixels", f"datamodule.path={photos}", "datamodule.size=4", "run_dir=run", *TINY)
    assert status == 0, err
    tokenizer = LanguageModel.load_from_checkpoint("run").tokenizer
    assert tokenizer is not None
    again = PixelDataModule(path=str(photos), **tokenizer.arguments)
    assert again.fingerprint == PixelDataModule(path=str(photos), size=4).fingerprint
    save(photos / "a/more.png", [[[255, 0, 0]]], "RGB")  # which would change a palette of its own
    status, _, err = cli("task=test", "checkpoint=run")
    assert status == 0, err


# The linear probe


def test_features_are_the_means_of_normed_inputs(digits: PixelDataModule) -> None:
    torch.manual_seed(0)
    gpt = GPT(17, 64, n_layer=2, n_head=2, n_embd=16).eval()
    inputs = digits.dataset("test")[torch.arange(3)][0]
    first, second, last = probe.features(gpt, inputs)
    torch.testing.assert_close(last, gpt.hidden(inputs).mean(dim=1))
    x = gpt.position_embedding(gpt.token_embedding(inputs), torch.arange(64))
    torch.testing.assert_close(first, gpt.blocks[0].norm_1(x).mean(dim=1))
    torch.testing.assert_close(second, gpt.blocks[1].norm_1(gpt.blocks[0](x, torch.arange(64))).mean(dim=1))
    assert not gpt.blocks[0].norm_1._forward_hooks


@pytest.mark.slow
def test_the_probe_tells_digits_apart(digits: PixelDataModule) -> None:
    torch.manual_seed(0)
    accuracies, bare = probe.probe(GPT(17, 64, n_layer=1, n_head=2, n_embd=16), digits)
    assert len(accuracies) == 2
    assert all(0.1 < value < bare for value in accuracies)  # untrained
    assert bare > 0.93


def test_pictures_without_classes_have_no_probe(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / f"{number}.png", np.full((4, 4), 20 * number))
    data = PixelDataModule(path=str(tmp_path), size=4)
    with pytest.raises(UserError, match="no classes"):
        probe.probe(GPT(data.vocab_size, 16, n_layer=1, n_head=1, n_embd=8), data)


@pytest.mark.curves
def test_the_command_of_the_probe_writes_its_curve(cli: Cli, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = cli("datamodule=pixels", f"datamodule.path={photos}", "datamodule.size=4", "run_dir=run", *TINY)
    assert status == 0, err
    probe.main(["run"])
    err = capsys.readouterr().err
    assert "layer   1" in err
    assert "of 2 test pictures" in err
    assert load("run/probe.png").shape[1] == 600
    with pytest.raises(UserError, match=r"Usage: python -m projects\.pixels\.probe RUN"):
        probe.main([])
