"""CLAP: audio and text in one space, so that a genre needs no training, only its name.

`laion/larger_clap_music` (Apache-2.0), 48 kHz, 512 dimensions; Wu et al., *Large-scale Contrastive
Language-Audio Pretraining*, ICASSP 2023. The two networks and the tokenizer are transformers'; the
checkpoint is read and compared by us, since `from_pretrained` would fill what is missing with
random numbers. The front end is that of `ClapFeatureExtractor` for "rand_trunc", in torch, so that
it is batched and needs no loop over frames.

Conventions: windows are (n, 480,000) float32 at 48 kHz; embeddings have length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reclass_plex.encoders.checkpoints import check_tensors, open_checkpoint
from reclass_plex.encoders.transformer import choose_dtype
from reclass_plex.encoders.windows import check_embeddings, check_mono, check_windows, equal_windows
from reclass_plex.errors import ModelError, printable

RATE = 48_000  # Hz
WINDOW_SECONDS = 10.0
WINDOW = 480_000  # samples
LICENCE = "Apache-2.0"
FILES = ("model.safetensors", "pytorch_model.bin")
PROMPT = "This is a {} song."
SMALLEST_POWER = 1e-10  # of a mel band
# Whole numbers that the configuration implies; some versions save them, some do not.
INDICES = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")


class Clap:
    """CLAP, ready to encode audio and to compare it with texts; see `Encoder`."""

    name = "clap"
    licence = LICENCE
    rate = RATE
    window_seconds = WINDOW_SECONDS
    layers: tuple[int, ...] = ()

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers' types need transformers)
        extractor: Any,  # noqa: ANN401
        tokenizer: Any,  # noqa: ANN401
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the parts from transformers; `load_clap` says the rest."""
        self.device = device
        self.dtype = choose_dtype(device) if dtype is None else dtype
        self.dims = int(model.config.projection_dim)
        self.model = model.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._compared: tuple[tuple[str, ...], Tensor] | None = None  # the last texts, embedded
        self._size, self._hop = int(extractor.fft_window_size), int(extractor.hop_length)
        bank = torch.as_tensor(extractor.mel_filters_slaney, dtype=torch.float32)
        self._mel_filters = bank.to(device)  # (513, 64)

    def cut(self, samples: Tensor) -> Tensor:
        """Return windows (w, 480,000) of mono `samples` (n > 0,) at 48 kHz.

        Shorter audio is repeated as often as it fits whole, then silence: "repeatpad", as trained.
        """
        check_mono(samples)
        if len(samples) >= WINDOW:
            return equal_windows(samples, WINDOW)
        repeated = samples.repeat(WINDOW // len(samples))
        return functional.pad(repeated, (0, WINDOW - len(repeated)))[None]

    @torch.no_grad()
    def encode(self, windows: Tensor) -> Tensor:
        """Return embeddings (n, 1, dims) float32 of windows (n, 480,000).

        Raises ValueError, ModelError.
        """
        check_windows(windows, WINDOW)
        if windows.shape[1] != WINDOW:
            raise ValueError(f"windows have {WINDOW} samples, not {windows.shape[1]}")
        spectrogram = self.log_mel(windows.to(self.device, non_blocking=True))
        with self._precision():
            heard = self.model.audio_model(input_features=spectrogram[:, None])
            projected = self.model.audio_projection(heard.pooler_output)
        embeddings = functional.normalize(projected.float(), dim=-1)[:, None]
        return check_embeddings(embeddings, self.name, self.dtype)

    def log_mel(self, windows: Tensor) -> Tensor:
        """Return 10 log10 of the mel power, (n, 1001, 64), of windows (n, 480,000)."""
        window = torch.hann_window(self._size, device=windows.device)
        spectrum = torch.stft(windows, self._size, self._hop, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
        return 10 * torch.log10((power @ self._mel_filters).clamp(min=SMALLEST_POWER))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings (k, dims) float32 of `texts`. Raises ValueError if there are none."""
        if not texts:
            raise ValueError("no text to compare with")
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with self._precision():
            read = self.model.text_model(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            )
            projected = self.model.text_projection(read.pooler_output)
        embeddings = functional.normalize(projected.float(), dim=-1)
        return check_embeddings(embeddings, self.name, self.dtype)

    @torch.no_grad()
    def score_texts(
        self, embeddings: Tensor, genres: Sequence[str], prompt: str = PROMPT
    ) -> Tensor:
        """Return probabilities (n, k) float32 of `genres` for audio `embeddings` (n, dims).

        The softmax of the scaled cosines, as in training. They rank; they are not calibrated.
        `prompt` has one {} for the genre. Raises ValueError.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dims:
            raise ValueError(f"embeddings are (n, {self.dims}), not {tuple(embeddings.shape)}")
        prompts = tuple(prompt.format(genre) for genre in genres)
        if (
            self._compared is None or self._compared[0] != prompts
        ):  # mostly the same, track by track
            self._compared = (prompts, self.embed_texts(prompts))
        texts = self._compared[1]
        audio = functional.normalize(embeddings.to(self.device), dim=-1)
        scale: Tensor = self.model.logit_scale_a.exp()
        return (scale * (audio @ texts.T)).softmax(1)

    def _precision(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)


def load_clap(folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Clap:
    """Load CLAP from a folder as the hub has it: weights, configuration, extractor, tokenizer.

    Nothing is fetched, no code of the folder runs. `dtype` is that of the matrix products; None
    chooses it. Raises ModelError, naming file or folder, if a part is missing or damaged, if any
    tensor's name, shape or value is not as the configuration implies, or for a CLAP with fusion.
    """
    from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{printable(folder / name)}: is not there")
    config = read_config(folder)
    try:
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = RobertaTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what transformers raises for damaged files is not documented
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{printable(folder)}: cannot read the configuration: {reason}") from error
    if config.audio_config.enable_fusion or extractor.truncation == "fusion":
        raise ModelError(f"{printable(folder)}: a CLAP with fusion; only those without are known")
    if (extractor.sampling_rate, extractor.nb_max_samples) != (RATE, WINDOW):
        found = f"{extractor.nb_max_samples} samples at {extractor.sampling_rate} Hz"
        raise ModelError(f"{printable(folder)}: windows of {found}, not {WINDOW} at {RATE} Hz")
    weights, tensors = open_checkpoint(folder, FILES)
    try:
        model = ClapModel(config)
    except Exception as error:  # sizes that do not fit each other end in any torch error
        reason = str(error).strip().partition("\n")[0]
        path = printable(folder / "config.json")
        raise ModelError(f"{path}: describes no CLAP: {reason}") from error
    own = model.state_dict()
    shapes = {name: tuple(t.shape) for name, t in own.items() if t.is_floating_point()}
    given = {name: t for name, t in tensors.items() if not name.endswith(INDICES)}
    check_tensors(given, shapes, weights)
    model.load_state_dict(own | given, strict=True)
    return Clap(model, extractor, tokenizer, device=device, dtype=dtype)


def read_config(folder: Path) -> Any:  # noqa: ANN401 (transformers' types need transformers)
    """Return the `ClapConfig` in `folder`. Raises ModelError, naming the folder."""
    from transformers import ClapConfig

    try:
        return ClapConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what transformers raises for damaged files is not documented
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{printable(folder)}: cannot read the configuration: {reason}") from error
