"""Images and sounds from files, as the array that the checkpoint's own processor makes of them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweeper import config
from sweeper.environment import version, versions
from sweeper.errors import ConfigError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_PACKAGES = ("transformers", "torch", "torchvision", "pillow", "soundfile", "numpy")  # that decide the numbers


def media_files(inputs: config.Inputs) -> list[Path]:
    """The images or the sounds of a folder, in the order of their names; or the one file that is named.

    Raises:
        ConfigError: there are none, or images and sounds are mixed.
    """
    assert inputs.media is not None
    place = Path(inputs.media).expanduser()
    if not place.exists():
        raise ConfigError(f"inputs.media: no such file or folder: {place}")
    found = sorted(place.iterdir()) if place.is_dir() else [place]
    kinds = [[path for path in found if path.suffix.lower() in kind] for kind in (IMAGES, SOUNDS)]
    images, sounds = kinds
    if bool(images) == bool(sounds):
        held = "both" if images else "none"
        raise ConfigError(
            f"inputs.media: {place} must hold images or sounds ({', '.join((*IMAGES, *SOUNDS))}); it has {held}"
        )
    return images or sounds


def is_sound(path: Path) -> bool:
    """Whether a file holds a sound, by its suffix."""
    return path.suffix.lower() in SOUNDS


def missing_package(inputs: config.Inputs) -> str | None:
    """Why the files cannot be opened here, and what to install; None where they can."""
    if inputs.media is None:
        return None
    kind, package = ("sounds", "soundfile") if is_sound(media_files(inputs)[0]) else ("images", "pillow")
    if version(package) is not None:
        return None
    return f"{kind} need the package {package}, which is not installed: pip install {package} (or 'sweeper[media]')"


def as_array(inputs: config.Inputs, folder: Path, reads: str, say: Callable[[str], None]) -> Path:
    """The file with what the checkpoint's processor makes of the media, a row each; made once, in the cache.

    Args:
        inputs: names the media.
        folder: the checkpoint, with its processor's settings.
        reads: what the model calls its main input.
        say: told before the processor runs.

    Raises:
        ConfigError: the checkpoint has no processor, or it refuses the files.
    """
    from sweeper.checkpoints import cache  # file locks: not needed to validate

    settings = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if not settings:
        raise ConfigError(
            f"inputs.media: {folder} has no {' and no '.join(PROCESSOR_FILES)}; give what its processor makes of the "
            "files: inputs=arrays inputs.arrays=FILE"
        )
    files = media_files(inputs)
    # the model's own config too: it names the processor where the processor's settings do not
    configs = [path for path in (folder / "config.json",) if path.is_file()]
    decides = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*settings, *configs, *files)]
    named = json.dumps([reads, decides, versions(_PACKAGES)], sort_keys=True)

    def build(target: Path) -> None:
        say(f"{len(files)} {'sounds' if is_sound(files[0]) else 'images'} go through the checkpoint's processor, once")
        _save(target / "array.safetensors", files, folder, reads)

    return (
        cache.build_once(f"media-{hashlib.sha256(named.encode()).hexdigest()[:16]}", build, say) / "array.safetensors"
    )


def _save(path: Path, files: Sequence[Path], folder: Path, reads: str) -> None:
    from safetensors.torch import save_file  # torch: seconds

    try:
        processor, given = (_sounds if is_sound(files[0]) else _images)(files, folder)
    except ConfigError:
        raise
    except Exception as error:  # a broken image, or a processor that refuses: libraries raise what they like
        reason = " ".join(str(error).split())
        raise ConfigError(f'inputs.media: {files[0].parent} is refused: {type(error).__name__} "{reason}"') from None
    if reads not in given:
        made = ", ".join(given)
        raise ConfigError(f"inputs.media: {type(processor).__name__} makes {made}, and the model reads {reads}")
    array_S = given[reads].contiguous()
    kind = "sounds" if is_sound(files[0]) else "images"
    save_file({reads: array_S}, path, {"note": f"{len(files)} {kind} by {type(processor).__name__}{_silence(files)}"})


def _images(files: Sequence[Path], folder: Path) -> tuple[Any, Any]:
    from PIL import Image

    # transformers' own front door wants torchvision, which its processors do without
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    images = [Image.open(path).convert("RGB") for path in files]
    return processor, processor(images=images, return_tensors="pt")


def _sounds(files: Sequence[Path], folder: Path) -> tuple[Any, Any]:
    import soundfile
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    rate = extractor.sampling_rate
    samples = []
    for path in files:
        sound, sampled_at = soundfile.read(path, dtype="float32", always_2d=True)
        if sampled_at != rate or sound.shape[1] != 1:
            raise ConfigError(
                f"inputs.media: {path} has {sound.shape[1]} channels at {sampled_at} Hz, and the model hears 1 at "
                f"{rate} Hz; convert it: ffmpeg -i {path.name} -ac 1 -ar {rate} OUT.wav"
            )
        samples.append(sound[:, 0])
    # Whisper's kin pad to their own length by default; the others not at all
    pads = inspect.signature(extractor.__call__).parameters.get("padding")
    padding = {"padding": True} if pads is not None and pads.default is False else {}
    return extractor, extractor(samples, sampling_rate=rate, return_tensors="pt", **padding)


def _silence(files: Sequence[Path]) -> str:
    if not is_sound(files[0]):
        return ""
    import soundfile

    lengths = {soundfile.info(path).frames for path in files}
    return "; shorter ones are padded with silence, which the model hears" if len(lengths) > 1 else ""
