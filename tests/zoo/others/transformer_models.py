"""Tiny seeded models of transformers beyond text: ViT, DINOv2, CLIP, SigLIP, Whisper, wav2vec2; and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings
from transformers.models.whisper.modeling_whisper import WhisperPositionalEmbedding

from tests.zoo.pairs import Inputs

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION = _SIZES | {"image_size": 16, "patch_size": 4}
_TEXT = _SIZES | {
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 59,
    "pad_token_id": 0,
}
_TWO_TOWERS = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 24}
_WHISPER = {
    "vocab_size": 60,
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 20,
    "max_target_positions": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "use_cache": False,
}
_WAV2VEC2 = _SIZES | {
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 2,
    "mask_time_prob": 0.2,
}
_CLASSES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "vit": (ViTModel, ViTConfig, _VISION),
    "vit_classifier": (ViTForImageClassification, ViTConfig, _VISION | {"num_labels": 10}),
    "dinov2": (Dinov2Model, Dinov2Config, _VISION | {"mlp_ratio": 2}),
    "clip": (CLIPModel, CLIPConfig, _TWO_TOWERS),
    "siglip": (SiglipModel, SiglipConfig, _TWO_TOWERS),
    "whisper": (WhisperForConditionalGeneration, WhisperConfig, _WHISPER),
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config, _WAV2VEC2),
}
_KEPT = ("parametrizations", "encoder.embed_positions", "logit_scale", "logit_bias")


def tiny(name: str, dtype: torch.dtype = torch.float32, attention: str = "eager", **changes: Any) -> Any:
    """A seeded model in evaluation mode, lively enough that attention is not uniform; `changes` go to its config."""
    model_class, config_class, sizes = _CLASSES[name]
    nested = {key: sizes[key] | value for key, value in changes.items() if isinstance(value, dict)}
    torch.manual_seed(31)
    model = model_class._from_config(config_class(**sizes | changes | nested), attn_implementation=attention)
    generator = torch.Generator().manual_seed(32)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(part in path for part in _KEPT):
                continue
            if parameter.ndim < 2:
                parameter += 0.1 * noise
            else:
                parameter.copy_(noise * (0.3 if "embed" in path else 1.3 * parameter[0].numel() ** -0.5))
    return model.to(dtype).eval()


def pixels(dtype: torch.dtype = torch.float32, *, size: int = 16) -> Inputs:
    """Seeded normalised images [B, 3, H, W]."""
    return {"pixel_values": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(33)).to(dtype)}


def captioned(dtype: torch.dtype = torch.float32) -> Inputs:
    """Images, and as many texts [B, T] that end in the last token of the vocabulary."""
    ids = torch.randint(3, 59, (3, 8), generator=torch.Generator().manual_seed(34))
    ids[:, -1] = 59
    return {"input_ids": ids, **pixels(dtype)}


def speech(dtype: torch.dtype = torch.float32) -> Inputs:
    """Seeded log-mel features [B, F, S] and decoder tokens [B, T]."""
    generator = torch.Generator().manual_seed(35)
    features = torch.randn(2, 16, 40, generator=generator).to(dtype)
    return {"input_features": features, "decoder_input_ids": torch.randint(4, 60, (2, 9), generator=generator)}


def waves(dtype: torch.dtype = torch.float32, *, mask: bool = True) -> Inputs:
    """Seeded audio [B, S]; the second row is shorter, zeros behind it, and `mask` says so."""
    values = torch.randn(2, 244, generator=torch.Generator().manual_seed(36))
    real = (torch.arange(244) < torch.tensor([[244], [150]])).long()
    inputs: Inputs = {"input_values": (values * real).to(dtype)}
    return inputs | {"attention_mask": real} if mask else inputs


class ClassTokenLast(ViTEmbeddings):
    """Puts the class token behind the patches, under positions that expect it in front."""

    def forward(self, pixel_values: Tensor, **options: Any) -> Tensor:
        patches = self.patch_embeddings(pixel_values)
        token = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([patches, token], dim=1) + self.position_embeddings


class BilinearPositions(Dinov2Embeddings):
    """Stretches the positions of a smaller image bilinearly, where they were trained to be stretched bicubically."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        table = self.position_embeddings
        side = int((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        size = (height // self.patch_size, width // self.patch_size)
        grid = functional.interpolate(grid.to(torch.float32), size=size, mode="bilinear").to(table.dtype)
        return torch.cat([table[:, :1], grid.flatten(2).mT], dim=1)


class TransposedPatches(nn.Conv2d):
    """Cuts patches in columns first, where the positions count rows first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).mT


class TokenOf(nn.Module):
    """An image's embedding [B, D]: the hidden state at one index."""

    def __init__(self, model: nn.Module, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).last_hidden_state[:, self.index]


class RawLogitScale(CLIPModel):
    """Multiplies by the logarithm of the temperature that is kept, without taking its exponential."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        for name in ("logits_per_image", "logits_per_text"):
            output[name] = output[name] * (self.logit_scale / self.logit_scale.exp())
        return output


class ImageEmbedding(nn.Module):
    """CLIP's embedding of an image, of length 1 or as it is."""

    def __init__(self, model: nn.Module, *, normalise: bool) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        embedding = self.model.get_image_features(pixel_values=pixel_values).pooler_output
        return functional.normalize(embedding, dim=-1) if self.normalise else embedding


class PositionsFromOne(WhisperPositionalEmbedding):
    """Counts from one, as if there were a token in the cache."""

    def forward(self, input_ids: Tensor, past_key_values_length: int = 0, position_ids: Tensor | None = None) -> Tensor:
        return super().forward(input_ids, past_key_values_length + 1, None)


class FrameShort(Wav2Vec2Model):
    """Takes the audio for two frames shorter than it is when it makes the mask of the frames."""

    def _get_feat_extract_output_lengths(self, input_lengths: Any, add_adapter: bool | None = None) -> Any:
        return super()._get_feat_extract_output_lengths(input_lengths, add_adapter) - 2
