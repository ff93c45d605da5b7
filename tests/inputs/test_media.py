"""Images and sounds from files: the cells read what the checkpoint's own processor makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from sweeper.config import Cell, Inputs, parse
from sweeper.errors import ConfigError
from sweeper.inputs import media
from sweeper.inputs.arrays import array_notes, read_arrays
from sweeper.inputs.texts import validate_inputs
from sweeper.planning.plan import CellIds
from sweeper.planning.settle import Settler
from tests.checkpoints.grids import run_with
from tests.tiny_folders import cell_of, folder_of

IMAGES = Path(__file__).parents[1] / "data" / "images"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    pytest.importorskip("PIL")
    folder = Path(shutil.copytree(folder_of("vit"), tmp_path / "vit"))
    side = json.loads((folder / "config.json").read_text())["image_size"]
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def wav2vec2(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(folder_of("wav2vec2"), tmp_path / "wav2vec2"))
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, hertz, samples in (("a", 440, 3200), ("b", 660, 2400)):
        soundfile.write(folder / f"{name}.wav", np.sin(np.arange(samples) * 2 * np.pi * hertz / 16000), 16000)
    return folder


def reading(place: Path) -> Inputs:
    found: Inputs = parse(Inputs, {"name": "mine", "media": str(place)})
    return found


def settled(folder: Path, place: Path) -> Cell:
    return Settler(print).cell(cell_of(folder, inputs={"name": "mine", "media": str(place)}))


def test_images_go_through_the_checkpoints_processor(vit: Path) -> None:
    from PIL import Image

    path = Path(str(settled(vit, IMAGES).inputs.arrays))
    images = [Image.open(IMAGES / name) for name in ("gradient.png", "stripes.png")]
    assert torch.equal(
        read_arrays(path), AutoImageProcessor.from_pretrained(vit)(images, return_tensors="pt").pixel_values
    )
    assert array_notes(path)["media"].startswith("2 images by ViTImageProcessor")


def test_the_model_that_names_the_processor_is_part_of_what_is_kept(vit: Path) -> None:
    """Where a processor's settings do not say what it is, transformers reads that in the model's own config."""
    settings = vit / "preprocessor_config.json"
    given = {key: value for key, value in json.loads(settings.read_text()).items() if key != "image_processor_type"}
    settings.write_text(json.dumps(given))
    assert array_notes(Path(str(settled(vit, IMAGES).inputs.arrays)))["media"].startswith("2 images by ViT")
    config = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps(config | {"model_type": "beit"}))
    made = media.as_array(reading(IMAGES), vit, "pixel_values", print)
    assert array_notes(made)["media"].startswith("2 images by Beit")


def test_sounds_go_through_the_checkpoints_extractor(wav2vec2: Path, sounds: Path) -> None:
    import soundfile

    path = Path(str(settled(wav2vec2, sounds).inputs.arrays))
    heard = [soundfile.read(file, dtype="float32")[0] for file in sorted(sounds.iterdir())]
    extractor = AutoFeatureExtractor.from_pretrained(wav2vec2)
    wanted = extractor(heard, sampling_rate=16000, padding=True, return_tensors="pt").input_values
    assert torch.equal(read_arrays(path), wanted)
    assert "padded with silence, which the model hears" in array_notes(path)["media"]


@pytest.mark.parametrize("model", ["vit", "wav2vec2"])
def test_a_grid_runs_on_files(request: pytest.FixtureRequest, tmp_path: Path, model: str, sounds: Path) -> None:
    folder = request.getfixturevalue(model)
    place = IMAGES if model == "vit" else sounds
    inputs = ["inputs=media", f"inputs.media={place}"]
    records = run_with(folder, tmp_path, "load_strategy", inputs, "dtype=bfloat16", "load_strategy=dtype_at_load")
    assert {record["status"] for record in records} == {"ok"}, [record["reason"] for record in records]
    assert all("by " in record["reading"]["media"] for record in records)
    settled_again = [parse(Cell, record["choices"]) for record in records]  # as `explain` reads them
    assert all(cell.inputs.media == str(place) for cell in settled_again)


def test_what_the_files_hold_is_part_of_the_id(vit: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(IMAGES, tmp_path / "own"))
    before = CellIds({}).of(settled(vit, own))
    assert CellIds({}).of(settled(vit, own)) == before
    shutil.copy(own / "stripes.png", own / "gradient.png")
    assert CellIds({}).of(settled(vit, own)) != before


def test_an_array_that_changes_makes_another_cell(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    ids = set()
    for fill in (0.0, 1.0):
        np.save(path, np.full((2, 3, 8, 8), fill))
        ids.add(CellIds({}).of(cell_of(folder_of("vit"), inputs={"name": "mine", "arrays": str(path)})))
    assert len(ids) == 2


def test_without_a_processor_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json .*inputs=arrays inputs\.arrays=FILE"):
        settled(folder_of("vit"), IMAGES)


def test_without_the_package_no_cell_runs(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "version", lambda _: None)
    cell = settled(vit, IMAGES)
    assert cell.inputs.arrays is None
    assert str(Settler(print).unsupported(cell)).startswith("images need the package pillow, which is not installed")


def test_a_model_of_texts_reads_no_images() -> None:
    cell = settled(folder_of("llama"), IMAGES)
    assert (
        Settler(print).unsupported(cell)
        == "LlamaForCausalLM reads input_ids, not images or sounds; type inputs=sentences"
    )


def test_sounds_are_not_resampled_in_silence(wav2vec2: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "stereo.wav", np.zeros((800, 2)), 44100)
    with pytest.raises(
        ConfigError, match=r"has 2 channels at 44100 Hz.*ffmpeg -i stereo\.wav -ac 1 -ar 16000 OUT\.wav"
    ):
        settled(wav2vec2, tmp_path / "stereo.wav")


def test_a_file_that_is_no_image_is_refused_in_one_line(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="is refused: UnidentifiedImageError") as raised:
        settled(vit, tmp_path / "x.png")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("names", [(), ("a.txt",), ("a.png", "b.wav")])
def test_a_folder_without_one_kind_of_media_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "mine").mkdir()
    for name in names:
        (tmp_path / "mine" / name).touch()
    with pytest.raises(ConfigError, match=r"inputs\.media: .* must hold images or sounds"):
        validate_inputs(reading(tmp_path / "mine"))
    with pytest.raises(ConfigError, match=r"inputs\.media: no such file or folder"):
        validate_inputs(reading(tmp_path / "nowhere"))


def test_one_source_is_given() -> None:
    with pytest.raises(ConfigError, match="give exactly one of"):
        parse(Inputs, {"name": "x", "media": "a", "texts": ["b"]})
